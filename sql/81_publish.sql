-- How far what has happened is published: bridges publish registry changes and transitions of breakers on NATS, one of them
-- at a time, and write down here how far they are. So nothing is lost when another one goes on. Not dumped.
--
-- UPGRADE SCRIPT NEEDED, as in 20_registry.sql.

create table @extschema@.extension_publications (
    subject        text not null,
    event_id       bigint not null,
    transaction_id xid8 not null,
    saved_at       timestamptz not null default current_timestamp,
    constraint extension_publications_pkey primary key (subject)
);

comment on table @extschema@.extension_publications is
    'How far the events of the registry are published on NATS. Written by bridges.';
comment on column @extschema@.extension_publications.subject is 'The NATS subject that they are published on.';
comment on column @extschema@.extension_publications.event_id is 'The last of extension_breaker_events that is published.';
comment on column @extschema@.extension_publications.transaction_id is
    'Entries of extension_audit_log from older transactions are published.';
comment on column @extschema@.extension_publications.saved_at is 'When.';

create index extension_audit_log_transaction_id_idx on @extschema@.extension_audit_log (transaction_id, changed_at, id);
