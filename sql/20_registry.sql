-- The registry: what DBAs edit and pg_dump carries.
--
-- UPGRADE SCRIPT NEEDED: tables are made once; a change here needs the same change in an upgrade script. New columns go to
-- the end (of extensions: before uid). Live state is not here but in shared memory (50_health.sql shows it).
--
-- Columns that the origin system left nullable stay nullable; the fill triggers (30_triggers.sql) put the default in.

create table @extschema@.extensions (
    id         varchar(255) not null,
    type       varchar(32) not null,
    subject    varchar(512) not null,
    timeout_ms integer not null default 5000,
    retry      integer not null default 0,
    enabled    boolean not null default true,
    version    varchar(32) not null default 'v1',
    config     jsonb default '{}'::jsonb,
    metadata   jsonb default '{}'::jsonb,
    created_at timestamptz default current_timestamp,
    updated_at timestamptz default current_timestamp,
    created_by varchar(255),
    updated_by varchar(255),
    balancing  varchar(32) not null default 'weighted_round_robin',
    hash_key   varchar(255),
    -- Last, where the C side finds it. Live state is kept under it: a rename keeps the state, a new row starts afresh.
    uid        bigint not null default hashtextextended(gen_random_uuid()::text, 0),
    constraint extensions_pkey primary key (id),
    constraint extensions_uid_key unique (uid),
    constraint extensions_id_check check (@extschema@._ext_check_id('id', id)),
    constraint extensions_type_check
        check (@extschema@._ext_check_one_of('type', type, array['pre', 'validator', 'provider', 'post'])),
    constraint extensions_subject_check check (@extschema@._ext_check_subject('subject', subject)),
    constraint extensions_timeout_ms_check check (@extschema@._ext_check_int('timeout_ms', timeout_ms, 10, 300000)),
    constraint extensions_retry_check check (@extschema@._ext_check_int('retry', retry, 0, 10)),
    constraint extensions_version_check check (@extschema@._ext_check_version('version', version)),
    constraint extensions_config_check check (@extschema@._ext_check_object('config', config)),
    constraint extensions_metadata_check check (@extschema@._ext_check_object('metadata', metadata)),
    constraint extensions_balancing_check
        check (@extschema@._ext_check_one_of('balancing', balancing,
            array['weighted_round_robin', 'round_robin', 'consistent_hash', 'least_latency'])),
    constraint extensions_hash_key_check
        check (@extschema@._ext_check_int('length of hash_key', length(hash_key), 1, 255))
);
select pg_extension_config_dump('@extschema@.extensions', '');

create index extensions_type_idx on @extschema@.extensions (type);

comment on table @extschema@.extensions is
    'Registered extensions: remote services reached by NATS request/reply. The row serves where no row of extension_versions matches.';
comment on column @extschema@.extensions.id is
    'Name of the extension. Renaming it takes versions, instances, settings, live state and history along; policies name ids and do not follow.';
comment on column @extschema@.extensions.type is 'Its place in a pipeline: pre, validator, provider or post.';
comment on column @extschema@.extensions.subject is 'The NATS subject it listens on.';
comment on column @extschema@.extensions.timeout_ms is 'How long one attempt may take, in ms (10 to 300000).';
comment on column @extschema@.extensions.retry is 'How many more attempts a failed call may make (0 to 10).';
comment on column @extschema@.extensions.enabled is 'False refuses every call with extension_disabled.';
comment on column @extschema@.extensions.version is 'The name of the version that this row itself is.';
comment on column @extschema@.extensions.config is 'Sent to the service with every call. A JSON object.';
comment on column @extschema@.extensions.metadata is
    'Facts about it. A JSON object; allowed_tenants, if there, lists the only tenants served.';
comment on column @extschema@.extensions.created_at is 'When the row was inserted.';
comment on column @extschema@.extensions.updated_at is 'When it last changed.';
comment on column @extschema@.extensions.created_by is 'The role that inserted it, unless given.';
comment on column @extschema@.extensions.updated_by is 'The role that last changed it, unless given.';
comment on column @extschema@.extensions.balancing is
    'How an instance is chosen: weighted_round_robin, round_robin, consistent_hash or least_latency.';
comment on column @extschema@.extensions.hash_key is 'The context key that consistent_hash hashes.';
comment on column @extschema@.extensions.uid is 'The identity under which live state is kept.';

create table @extschema@.extension_versions (
    id              varchar(255) not null,
    version         varchar(32) not null,
    subject         varchar(512) not null,
    timeout_ms      integer not null,
    retry           integer not null,
    config          jsonb default '{}'::jsonb,
    metadata        jsonb default '{}'::jsonb,
    routing_rules   jsonb default '{}'::jsonb,
    enabled         boolean not null default true,
    created_at      timestamptz default current_timestamp,
    created_by      varchar(255),
    rollout_percent numeric(5, 2) not null default 100,
    rollout_key     varchar(255),
    -- Breaker settings of this version alone; NULL inherits the extension's.
    circuit_breaker_failure_threshold    integer,
    circuit_breaker_failure_min_rate     double precision,
    circuit_breaker_error_rate_threshold double precision,
    circuit_breaker_minimum_requests     integer,
    circuit_breaker_window_seconds       integer,
    circuit_breaker_timeout_seconds      integer,
    slow_call_ms                         double precision,
    slow_call_rate_threshold             double precision,
    half_open_max_requests               integer,
    breaker_mode                         text,
    constraint extension_versions_pkey primary key (id, version),
    constraint extension_versions_id_fkey foreign key (id)
        references @extschema@.extensions (id) on update cascade on delete cascade,
    constraint extension_versions_version_check check (@extschema@._ext_check_version('version', version)),
    constraint extension_versions_subject_check check (@extschema@._ext_check_subject('subject', subject)),
    constraint extension_versions_timeout_ms_check check (@extschema@._ext_check_int('timeout_ms', timeout_ms, 10, 300000)),
    constraint extension_versions_retry_check check (@extschema@._ext_check_int('retry', retry, 0, 10)),
    constraint extension_versions_config_check check (@extschema@._ext_check_object('config', config)),
    constraint extension_versions_metadata_check check (@extschema@._ext_check_object('metadata', metadata)),
    constraint extension_versions_routing_rules_check check (@extschema@._ext_check_rules(routing_rules)),
    constraint extension_versions_rollout_percent_check
        check (@extschema@._ext_check_number('rollout_percent', rollout_percent, 0, 100)),
    constraint extension_versions_rollout_key_check
        check (@extschema@._ext_check_int('length of rollout_key', length(rollout_key), 1, 255)),
    constraint extension_versions_failure_threshold_check
        check (@extschema@._ext_check_int('circuit_breaker_failure_threshold', circuit_breaker_failure_threshold, 1, 2147483647)),
    constraint extension_versions_failure_min_rate_check
        check (@extschema@._ext_check_number('circuit_breaker_failure_min_rate', circuit_breaker_failure_min_rate, 0, 1)),
    constraint extension_versions_error_rate_threshold_check
        check (@extschema@._ext_check_number('circuit_breaker_error_rate_threshold', circuit_breaker_error_rate_threshold, 0, 1)),
    constraint extension_versions_minimum_requests_check
        check (@extschema@._ext_check_int('circuit_breaker_minimum_requests', circuit_breaker_minimum_requests, 1, 2147483647)),
    constraint extension_versions_window_seconds_check
        check (@extschema@._ext_check_int('circuit_breaker_window_seconds', circuit_breaker_window_seconds, 1, 3600)),
    constraint extension_versions_timeout_seconds_check
        check (@extschema@._ext_check_int('circuit_breaker_timeout_seconds', circuit_breaker_timeout_seconds, 1, 86400)),
    constraint extension_versions_slow_call_ms_check
        check (@extschema@._ext_check_number('slow_call_ms', slow_call_ms, 0.001, 300000)),
    constraint extension_versions_slow_call_rate_threshold_check
        check (@extschema@._ext_check_number('slow_call_rate_threshold', slow_call_rate_threshold, 0, 1)),
    constraint extension_versions_half_open_max_requests_check
        check (@extschema@._ext_check_int('half_open_max_requests', half_open_max_requests, 1, 100)),
    constraint extension_versions_breaker_mode_check
        check (@extschema@._ext_check_one_of('breaker_mode', breaker_mode,
            array['auto', 'forced_open', 'forced_closed', 'metrics_only']))
);
select pg_extension_config_dump('@extschema@.extension_versions', '');

comment on table @extschema@.extension_versions is
    'Versions of extensions, chosen by routing_rules and rollout_percent. No foreign key points here.';
comment on column @extschema@.extension_versions.id is 'The extension.';
comment on column @extschema@.extension_versions.version is 'Name of the version; higher ones win in natural order (v10 > v9).';
comment on column @extschema@.extension_versions.subject is 'The NATS subject this version listens on.';
comment on column @extschema@.extension_versions.timeout_ms is 'How long one attempt may take, in ms (10 to 300000).';
comment on column @extschema@.extension_versions.retry is 'How many more attempts a failed call may make (0 to 10).';
comment on column @extschema@.extension_versions.config is 'Sent to the service with every call. A JSON object.';
comment on column @extschema@.extension_versions.metadata is 'Facts about the version. A JSON object.';
comment on column @extschema@.extension_versions.routing_rules is
    'Which requests it serves: context key -> value, list, null or operators; all keys must hold. {} is everybody, [] nobody.';
comment on column @extschema@.extension_versions.enabled is 'False takes the version out of the choice.';
comment on column @extschema@.extension_versions.created_at is 'When the row was inserted.';
comment on column @extschema@.extension_versions.created_by is 'The role that inserted it, unless given.';
comment on column @extschema@.extension_versions.rollout_percent is
    'Share of the requests that match its rules, 0 to 100; the same rollout_key always gets the same answer.';
comment on column @extschema@.extension_versions.rollout_key is 'The context key that shares are decided by; NULL is tenant_id.';
comment on column @extschema@.extension_versions.circuit_breaker_failure_threshold is 'As in extension_health; NULL inherits.';
comment on column @extschema@.extension_versions.circuit_breaker_failure_min_rate is 'As in extension_health; NULL inherits.';
comment on column @extschema@.extension_versions.circuit_breaker_error_rate_threshold is 'As in extension_health; NULL inherits.';
comment on column @extschema@.extension_versions.circuit_breaker_minimum_requests is 'As in extension_health; NULL inherits.';
comment on column @extschema@.extension_versions.circuit_breaker_window_seconds is 'As in extension_health; NULL inherits.';
comment on column @extschema@.extension_versions.circuit_breaker_timeout_seconds is 'As in extension_health; NULL inherits.';
comment on column @extschema@.extension_versions.slow_call_ms is 'As in extension_health; NULL inherits.';
comment on column @extschema@.extension_versions.slow_call_rate_threshold is 'As in extension_health; NULL inherits.';
comment on column @extschema@.extension_versions.half_open_max_requests is 'As in extension_health; NULL inherits.';
comment on column @extschema@.extension_versions.breaker_mode is 'As in extension_health; NULL inherits.';

create table @extschema@.extension_instances (
    extension_id      varchar(255) not null,
    instance_id       varchar(255) not null,
    subject           varchar(512) not null,
    weight            integer default 100,
    enabled           boolean not null default true,
    health_status     varchar(32) default 'unknown',
    last_health_check timestamptz,
    created_at        timestamptz default current_timestamp,
    updated_at        timestamptz default current_timestamp,
    version           varchar(32),
    draining          boolean not null default false,
    metadata          jsonb not null default '{}'::jsonb,
    constraint extension_instances_pkey primary key (extension_id, instance_id),
    constraint extension_instances_extension_id_fkey foreign key (extension_id)
        references @extschema@.extensions (id) on update cascade on delete cascade,
    constraint extension_instances_instance_id_check check (@extschema@._ext_check_id('instance_id', instance_id)),
    constraint extension_instances_subject_check check (@extschema@._ext_check_subject('subject', subject)),
    constraint extension_instances_weight_check check (@extschema@._ext_check_int('weight', weight, 0, 100)),
    constraint extension_instances_health_status_check
        check (@extschema@._ext_check_one_of('health_status', health_status,
            array['healthy', 'degraded', 'unhealthy', 'unknown'])),
    constraint extension_instances_version_check check (@extschema@._ext_check_version('version', version)),
    constraint extension_instances_metadata_check check (@extschema@._ext_check_object('metadata', metadata))
);
select pg_extension_config_dump('@extschema@.extension_instances', '');

comment on table @extschema@.extension_instances is
    'Instances of extensions, among which calls are balanced. Without rows for a version its own subject is used.';
comment on column @extschema@.extension_instances.extension_id is 'The extension.';
comment on column @extschema@.extension_instances.instance_id is 'Name of the instance.';
comment on column @extschema@.extension_instances.subject is 'The NATS subject this instance listens on.';
comment on column @extschema@.extension_instances.weight is 'Its share of the calls relative to the others (0 to 100); 0 gets none.';
comment on column @extschema@.extension_instances.enabled is 'False takes the instance out of the choice.';
comment on column @extschema@.extension_instances.health_status is
    'Declared health: healthy, degraded (half the weight), unhealthy (left out) or unknown.';
comment on column @extschema@.extension_instances.last_health_check is 'When health_status was last looked at.';
comment on column @extschema@.extension_instances.created_at is 'When the row was inserted.';
comment on column @extschema@.extension_instances.updated_at is 'When it last changed.';
comment on column @extschema@.extension_instances.version is
    'The version it serves; NULL: the one with the same subject, or every version where none has it.';
comment on column @extschema@.extension_instances.draining is 'True gives it no new calls.';
comment on column @extschema@.extension_instances.metadata is 'Facts about the instance. A JSON object.';

create table @extschema@.extension_policies (
    tenant_id  varchar(255) not null,
    policy_id  varchar(255) not null,
    document   jsonb not null,
    enabled    boolean not null default true,
    created_at timestamptz default current_timestamp,
    updated_at timestamptz default current_timestamp,
    constraint extension_policies_pkey primary key (tenant_id, policy_id),
    constraint extension_policies_tenant_id_check check (@extschema@._ext_check_id('tenant_id', tenant_id)),
    constraint extension_policies_policy_id_check check (@extschema@._ext_check_id('policy_id', policy_id)),
    constraint extension_policies_document_check check (@extschema@._ext_check_policy(document))
);
select pg_extension_config_dump('@extschema@.extension_policies', '');

comment on table @extschema@.extension_policies is 'Pipelines of tenants: which extensions a routed request goes through.';
comment on column @extschema@.extension_policies.tenant_id is 'The tenant.';
comment on column @extschema@.extension_policies.policy_id is 'Name of the policy within the tenant.';
comment on column @extschema@.extension_policies.document is
    'The pipeline: pre, validators, providers, post, fallbacks, sticky. Its shape is checked when written.';
comment on column @extschema@.extension_policies.enabled is 'False hides the policy from the bridge.';
comment on column @extschema@.extension_policies.created_at is 'When the row was inserted.';
comment on column @extschema@.extension_policies.updated_at is 'When it last changed.';

create table @extschema@.extension_health_settings (
    extension_id varchar(255) not null,
    circuit_breaker_failure_threshold    integer default 5,
    circuit_breaker_failure_min_rate     double precision default 0.01,
    circuit_breaker_error_rate_threshold double precision default 0.5,
    circuit_breaker_minimum_requests     integer not null default 5,
    circuit_breaker_window_seconds       integer not null default 60,
    circuit_breaker_timeout_seconds      integer not null default 60,
    slow_call_ms                         double precision,
    slow_call_rate_threshold             double precision,
    half_open_max_requests               integer not null default 3,
    breaker_mode                         text not null default 'auto',
    ejection_consecutive_failures        integer default 5,
    max_ejection_percent                 integer not null default 50,
    updated_at                           timestamptz default current_timestamp,
    constraint extension_health_settings_pkey primary key (extension_id),
    constraint extension_health_settings_extension_id_fkey foreign key (extension_id)
        references @extschema@.extensions (id) on update cascade on delete cascade,
    constraint extension_health_settings_failure_threshold_check
        check (@extschema@._ext_check_int('circuit_breaker_failure_threshold', circuit_breaker_failure_threshold, 1, 2147483647)),
    constraint extension_health_settings_failure_min_rate_check
        check (@extschema@._ext_check_number('circuit_breaker_failure_min_rate', circuit_breaker_failure_min_rate, 0, 1)),
    constraint extension_health_settings_error_rate_threshold_check
        check (@extschema@._ext_check_number('circuit_breaker_error_rate_threshold', circuit_breaker_error_rate_threshold, 0, 1)),
    constraint extension_health_settings_minimum_requests_check
        check (@extschema@._ext_check_int('circuit_breaker_minimum_requests', circuit_breaker_minimum_requests, 1, 2147483647)),
    constraint extension_health_settings_window_seconds_check
        check (@extschema@._ext_check_int('circuit_breaker_window_seconds', circuit_breaker_window_seconds, 1, 3600)),
    constraint extension_health_settings_timeout_seconds_check
        check (@extschema@._ext_check_int('circuit_breaker_timeout_seconds', circuit_breaker_timeout_seconds, 1, 86400)),
    constraint extension_health_settings_slow_call_ms_check
        check (@extschema@._ext_check_number('slow_call_ms', slow_call_ms, 0.001, 300000)),
    constraint extension_health_settings_slow_call_rate_threshold_check
        check (@extschema@._ext_check_number('slow_call_rate_threshold', slow_call_rate_threshold, 0, 1)),
    constraint extension_health_settings_half_open_max_requests_check
        check (@extschema@._ext_check_int('half_open_max_requests', half_open_max_requests, 1, 100)),
    constraint extension_health_settings_breaker_mode_check
        check (@extschema@._ext_check_one_of('breaker_mode', breaker_mode,
            array['auto', 'forced_open', 'forced_closed', 'metrics_only'])),
    constraint extension_health_settings_ejection_failures_check
        check (@extschema@._ext_check_int('ejection_consecutive_failures', ejection_consecutive_failures, 1, 2147483647)),
    constraint extension_health_settings_max_ejection_percent_check
        check (@extschema@._ext_check_int('max_ejection_percent', max_ejection_percent, 0, 100))
);
select pg_extension_config_dump('@extschema@.extension_health_settings', '');

comment on table @extschema@.extension_health_settings is
    'The settings columns of extension_health, where they are not the defaults. Edit them through that view.';
comment on column @extschema@.extension_health_settings.extension_id is 'The extension.';
comment on column @extschema@.extension_health_settings.circuit_breaker_failure_threshold is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.circuit_breaker_failure_min_rate is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.circuit_breaker_error_rate_threshold is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.circuit_breaker_minimum_requests is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.circuit_breaker_window_seconds is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.circuit_breaker_timeout_seconds is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.slow_call_ms is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.slow_call_rate_threshold is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.half_open_max_requests is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.breaker_mode is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.ejection_consecutive_failures is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.max_ejection_percent is 'As in extension_health.';
comment on column @extschema@.extension_health_settings.updated_at is 'When it last changed.';
