-- The worker's tables: what shared memory is reloaded from at start, and resets on their way to it. Not dumped, except the
-- grants, which are the owner's. Nobody writes here by hand.
--
-- UPGRADE SCRIPT NEEDED, as in 20_registry.sql.

-- A reset is a number that a transaction raises: whoever loads the extension and finds a higher committed number than the
-- breaker has applied, applies it once. So ROLLBACK, COMMIT PREPARED, crashes and standbys need nothing of their own.
create table @extschema@.extension_breaker_resets (
    extension_id varchar(255) not null,
    version      varchar(32) not null default '',
    epoch        bigint not null,
    changed_by   varchar(255),
    changed_at   timestamptz not null default current_timestamp,
    constraint extension_breaker_resets_pkey primary key (extension_id, version),
    constraint extension_breaker_resets_extension_id_fkey foreign key (extension_id)
        references @extschema@.extensions (id) on update cascade on delete cascade
);

comment on table @extschema@.extension_breaker_resets is
    'How often breakers have been reset by hand. Written by ext_breaker_reset and by updates of extension_health.';
comment on column @extschema@.extension_breaker_resets.extension_id is 'The extension.';
comment on column @extschema@.extension_breaker_resets.version is 'The version, empty for all of them.';
comment on column @extschema@.extension_breaker_resets.epoch is 'Number of resets.';
comment on column @extschema@.extension_breaker_resets.changed_by is 'Who reset last (session user).';
comment on column @extschema@.extension_breaker_resets.changed_at is 'When.';

create table @extschema@.extension_target_state (
    uid           bigint not null,
    kind          smallint not null,
    name          text not null,
    snapshot      bytea not null,
    breaker_state text,
    saved_at      timestamptz not null,
    constraint extension_target_state_pkey primary key (uid, kind, name)
);

comment on table @extschema@.extension_target_state is
    'Live state as the worker last saved it; read at server start and on standbys.';
comment on column @extschema@.extension_target_state.uid is 'extensions.uid.';
comment on column @extschema@.extension_target_state.kind is '1 version, 2 instance.';
comment on column @extschema@.extension_target_state.name is 'Name of the version or instance.';
comment on column @extschema@.extension_target_state.snapshot is 'Counts, window, histogram and breaker.';
comment on column @extschema@.extension_target_state.breaker_state is 'State of the breaker, for people.';
comment on column @extschema@.extension_target_state.saved_at is 'When.';

create table @extschema@.extension_reporters (
    reporter uuid not null,
    seq      bigint not null,
    saved_at timestamptz not null default current_timestamp,
    constraint extension_reporters_pkey primary key (reporter)
);

comment on table @extschema@.extension_reporters is
    'The last batch of outcomes of each bridge that is on disk: a batch sent again is not counted again.';
comment on column @extschema@.extension_reporters.reporter is 'The bridge, as it names itself to ext_report_many.';
comment on column @extschema@.extension_reporters.seq is 'Its last batch whose counts are saved.';
comment on column @extschema@.extension_reporters.saved_at is 'When.';

-- By name, not oid: a dump restores where the role is missing.
create table @extschema@.extension_registry_grants (
    role       name not null,
    level      varchar(32) not null,
    granted_by name not null default session_user,
    granted_at timestamptz not null default current_timestamp,
    constraint extension_registry_grants_pkey primary key (role, level),
    constraint extension_registry_grants_level_check
        check (@extschema@._ext_check_one_of('level', level, array['viewer', 'operator', 'admin', 'bridge']))
);
select pg_extension_config_dump('@extschema@.extension_registry_grants', '');

comment on table @extschema@.extension_registry_grants is
    'Levels given by ext_grant; a row gives its level, update scripts give them again. After renaming a role grant again.';
comment on column @extschema@.extension_registry_grants.role is 'The role.';
comment on column @extschema@.extension_registry_grants.level is 'viewer, operator, admin or bridge.';
comment on column @extschema@.extension_registry_grants.granted_by is 'Who gave it (session user).';
comment on column @extschema@.extension_registry_grants.granted_at is 'When.';
