-- What has happened: audit (carried by pg_dump), breaker events and minute metrics (not). Rows name extensions without a
-- foreign key: they outlive them.
--
-- UPGRADE SCRIPT NEEDED, as in 20_registry.sql.

create table @extschema@.extension_audit_log (
    id               uuid not null default gen_random_uuid(),
    extension_id     varchar(255) not null,
    action           varchar(32) not null,
    old_values       jsonb,
    new_values       jsonb,
    changed_by       varchar(255),
    changed_at       timestamptz not null default current_timestamp,
    table_name       varchar(63) not null,
    changed_role     varchar(255),
    application_name text,
    transaction_id   xid8,
    constraint extension_audit_log_pkey primary key (id),
    constraint extension_audit_log_action_check
        check (action in ('create', 'update', 'delete', 'enable', 'disable'))
);
select pg_extension_config_dump('@extschema@.extension_audit_log', '');

create index extension_audit_log_extension_id_idx on @extschema@.extension_audit_log (extension_id, changed_at);
-- Few rows: renames, by the id that was given up.
create index extension_audit_log_renamed_idx
on @extschema@.extension_audit_log (coalesce(old_values ->> 'extension_id', old_values ->> 'id'))
where coalesce(old_values ->> 'extension_id', old_values ->> 'id') <> extension_id;
create index extension_audit_log_changed_at_idx on @extschema@.extension_audit_log (changed_at);

comment on table @extschema@.extension_audit_log is
    'Every change of the registry, kept for ever and after the deletion of the extension. An entry for a rename stands under the new id, the old one is in old_values.';
comment on column @extschema@.extension_audit_log.id is 'Identity of the entry.';
comment on column @extschema@.extension_audit_log.extension_id is 'The extension; empty for a policy, which is named in old_values and new_values.';
comment on column @extschema@.extension_audit_log.action is
    'create, update or delete of a row; enable or disable where nothing but enabled has changed.';
comment on column @extschema@.extension_audit_log.old_values is 'The row before, NULL for create.';
comment on column @extschema@.extension_audit_log.new_values is 'The row after, NULL for delete.';
comment on column @extschema@.extension_audit_log.changed_by is 'The session user: who had logged in.';
comment on column @extschema@.extension_audit_log.changed_at is 'When, by the clock: entries of one transaction stand in their order.';
comment on column @extschema@.extension_audit_log.table_name is 'The table of the row.';
comment on column @extschema@.extension_audit_log.changed_role is 'The role set by SET ROLE, else the session user.';
comment on column @extschema@.extension_audit_log.application_name is 'application_name of the session.';
comment on column @extschema@.extension_audit_log.transaction_id is 'The transaction, as pg_current_xact_id() had it.';

create table @extschema@.extension_breaker_events (
    id           bigint generated always as identity,
    at           timestamptz not null default current_timestamp,
    extension_id varchar(255) not null,
    version      varchar(32) not null default '',
    instance_id  varchar(255) not null default '',
    from_state   varchar(32) not null,
    to_state     varchar(32) not null,
    reason       text,
    failures     bigint,
    requests     bigint,
    error_rate   double precision,
    by           varchar(255),
    constraint extension_breaker_events_pkey primary key (id)
);

create index extension_breaker_events_at_idx on @extschema@.extension_breaker_events (at);
create index extension_breaker_events_extension_id_idx on @extschema@.extension_breaker_events (extension_id, at);

comment on table @extschema@.extension_breaker_events is
    'Every transition of a circuit breaker and every ejection of an instance; kept 90 days, not dumped.';
comment on column @extschema@.extension_breaker_events.id is 'Ascending number.';
comment on column @extschema@.extension_breaker_events.at is 'When.';
comment on column @extschema@.extension_breaker_events.extension_id is 'The extension, by its present name.';
comment on column @extschema@.extension_breaker_events.version is 'The version, empty for none.';
comment on column @extschema@.extension_breaker_events.instance_id is 'The instance, empty for none.';
comment on column @extschema@.extension_breaker_events.from_state is 'The state before.';
comment on column @extschema@.extension_breaker_events.to_state is 'The state after.';
comment on column @extschema@.extension_breaker_events.reason is 'What caused it.';
comment on column @extschema@.extension_breaker_events.failures is 'Failures in the window then.';
comment on column @extschema@.extension_breaker_events.requests is 'Outcomes in the window then.';
comment on column @extschema@.extension_breaker_events.error_rate is 'Failures / outcomes, NULL without outcomes.';
comment on column @extschema@.extension_breaker_events.by is 'Who asked for it; NULL if nobody did.';

create table @extschema@.extension_metrics (
    minute           timestamptz not null,
    extension_id     varchar(255) not null,
    version          varchar(32) not null default '',
    instance_id      varchar(255) not null default '',
    success          bigint not null default 0,
    error            bigint not null default 0,
    timeout          bigint not null default 0,
    no_responders    bigint not null default 0,
    invalid_response bigint not null default 0,
    cancelled        bigint not null default 0,
    caller_error     bigint not null default 0,
    circuit_open     bigint not null default 0,
    retries          bigint not null default 0,
    latency          @extschema@.hdr,
    constraint extension_metrics_pkey primary key (minute, extension_id, version, instance_id)
);

create index extension_metrics_extension_id_idx on @extschema@.extension_metrics (extension_id, minute);

comment on table @extschema@.extension_metrics is
    'Outcomes and latencies per minute and target; kept 7 days, not dumped.';
comment on column @extschema@.extension_metrics.minute is 'The minute, by its beginning.';
comment on column @extschema@.extension_metrics.extension_id is 'The extension, by its present name.';
comment on column @extschema@.extension_metrics.version is 'The version, empty for none.';
comment on column @extschema@.extension_metrics.instance_id is 'The instance, empty for none.';
comment on column @extschema@.extension_metrics.success is 'Attempts that were answered well.';
comment on column @extschema@.extension_metrics.error is 'Attempts answered with an error.';
comment on column @extschema@.extension_metrics.timeout is 'Attempts not answered in time.';
comment on column @extschema@.extension_metrics.no_responders is 'Attempts that nobody listened to.';
comment on column @extschema@.extension_metrics.invalid_response is 'Attempts answered with something of the wrong shape.';
comment on column @extschema@.extension_metrics.cancelled is 'Attempts given up by the caller.';
comment on column @extschema@.extension_metrics.caller_error is 'Attempts that were the caller''s fault.';
comment on column @extschema@.extension_metrics.circuit_open is 'Calls refused by the open breaker, never sent.';
comment on column @extschema@.extension_metrics.retries is 'Attempts after the first.';
comment on column @extschema@.extension_metrics.latency is 'Latencies of the attempts.';
