-- The second release, as it was installed. Never edited.

-- Checks behind the CHECK constraints of the registry.
--
-- Each returns true, or raises check_violation (23514) naming the value, with a HINT on what would be accepted: a bare
-- "violates check constraint" says neither. They read no table, so a dump restores in any order. NULL passes.
--
-- The whole script runs under this path: names are written out, operators are those of pg_catalog.
set local search_path = pg_catalog, pg_temp;

-- The library takes text for UTF-8. In another encoding all letters beyond ASCII would be alike to it: rules would match
-- whom they should not. (SQL_ASCII is what initdb chooses without a locale; there text is what clients make it.)
do $$
begin
    if current_setting('server_encoding') not in ('UTF8', 'SQL_ASCII') then
        raise exception using
            errcode = 'feature_not_supported',
            message = format('ext_registry needs a database with encoding UTF8, not %s', current_setting('server_encoding')),
            hint = 'CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0;';
    end if;
end;
$$;

create function @extschema@._ext_check_id(what text, value text) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_id';

comment on function @extschema@._ext_check_id(text, text) is
    'True if value is an id: 1 to 255 of A-Z a-z 0-9 _ and -; else error 23514.';

create function @extschema@._ext_check_version(what text, value text) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_version';

comment on function @extschema@._ext_check_version(text, text) is
    'True if value is a version name: 1 to 32 of A-Z a-z 0-9 . _ + and -; else error 23514.';

create function @extschema@._ext_check_subject(what text, value text) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_subject';

comment on function @extschema@._ext_check_subject(text, text) is
    'True if value is a NATS subject one may publish to (no wildcard, space, empty token, leading $ or _INBOX); else error 23514.';

create function @extschema@._ext_check_int(what text, value bigint, low bigint, high bigint) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_int';

comment on function @extschema@._ext_check_int(text, bigint, bigint, bigint) is
    'True if low <= value <= high; else error 23514.';

create function @extschema@._ext_check_number(
    what text,
    value double precision,
    low double precision,
    high double precision
) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_number';

comment on function @extschema@._ext_check_number(text, double precision, double precision, double precision) is
    'True if low <= value <= high (NaN is not); else error 23514.';

create function @extschema@._ext_check_one_of(what text, value text, allowed text[]) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_one_of';

comment on function @extschema@._ext_check_one_of(text, text, text[]) is
    'True if value is one of allowed; else error 23514.';

create function @extschema@._ext_check_object(what text, value jsonb) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_object';

comment on function @extschema@._ext_check_object(text, jsonb) is
    'True if value is a JSON object; else error 23514.';

create function @extschema@._ext_check_rules(rules jsonb) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_rules';

comment on function @extschema@._ext_check_rules(jsonb) is
    'True if rules is a valid routing_rules object; else error 23514 naming the key.';

create function @extschema@._ext_check_policy(document jsonb) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_policy';

comment on function @extschema@._ext_check_policy(jsonb) is
    'True if document is a valid policy (pre, validators, providers, post, ...); else error 23514 naming the key.';

-- requires:
--   00_checks

-- Types: the mergeable latency histogram, and the rows that the C functions return.

-- hdr: a histogram of latencies. Kept as integer microseconds, in and out in milliseconds.
create type @extschema@.hdr;

create function @extschema@.hdr_in(cstring) returns @extschema@.hdr
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_in';

comment on function @extschema@.hdr_in(cstring) is
    'Reads an hdr from HdrHistogram V2 compressed base64 (HISTFAAA...).';

create function @extschema@.hdr_out(@extschema@.hdr) returns cstring
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_out';

comment on function @extschema@.hdr_out(@extschema@.hdr) is
    'Writes an hdr as HdrHistogram V2 compressed base64 (HISTFAAA...).';

create function @extschema@.hdr_recv(internal) returns @extschema@.hdr
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_recv';

comment on function @extschema@.hdr_recv(internal) is 'Reads an hdr from its binary form.';

create function @extschema@.hdr_send(@extschema@.hdr) returns bytea
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_send';

comment on function @extschema@.hdr_send(@extschema@.hdr) is
    'Writes an hdr in its binary form: a version byte, the number of buckets, then distance and count of each, as LEB128.';

create type @extschema@.hdr (
    input = @extschema@.hdr_in,
    output = @extschema@.hdr_out,
    receive = @extschema@.hdr_recv,
    send = @extschema@.hdr_send,
    internallength = variable,
    storage = extended
);

comment on type @extschema@.hdr is
    'A mergeable latency histogram (log-linear, at most 1 % relative error from 1 us to 5 min).';

create function @extschema@.hdr_quantile(h @extschema@.hdr, q double precision) returns double precision
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_quantile';

comment on function @extschema@.hdr_quantile(@extschema@.hdr, double precision) is
    'The latency in ms at quantile q (0 to 1), NULL if the histogram is empty.';

create function @extschema@.hdr_count(h @extschema@.hdr) returns bigint
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_count';

comment on function @extschema@.hdr_count(@extschema@.hdr) is
    'The number of latencies in the histogram.';

create function @extschema@.hdr_mean(h @extschema@.hdr) returns double precision
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_mean';

comment on function @extschema@.hdr_mean(@extschema@.hdr) is
    'The mean latency in ms, NULL if the histogram is empty.';

create function @extschema@.hdr_max(h @extschema@.hdr) returns double precision
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_max';

comment on function @extschema@.hdr_max(@extschema@.hdr) is
    'The highest latency in ms, NULL if the histogram is empty.';

create function @extschema@.hdr_merge(a @extschema@.hdr, b @extschema@.hdr) returns @extschema@.hdr
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_merge';

comment on function @extschema@.hdr_merge(@extschema@.hdr, @extschema@.hdr) is
    'Both histograms added together.';

create function @extschema@.hdr_buckets(
    h @extschema@.hdr,
    out from_ms double precision,
    out to_ms double precision,
    out count bigint
) returns setof record
language c immutable strict parallel safe rows 50
as 'MODULE_PATHNAME', 'hdr_buckets';

comment on function @extschema@.hdr_buckets(@extschema@.hdr) is
    'The buckets that hold latencies: from (inclusive) and to (exclusive) in ms, and how many there are.';

-- Aggregates. Their state is a histogram in memory; partial states travel between processes in the binary form of hdr.
create function @extschema@._hdr_agg_add(internal, double precision) returns internal
language c immutable parallel safe
as 'MODULE_PATHNAME', 'hdr_agg_add';

comment on function @extschema@._hdr_agg_add(internal, double precision) is 'A step of hdr_agg.';

create function @extschema@._hdr_agg_merge(internal, @extschema@.hdr) returns internal
language c immutable parallel safe
as 'MODULE_PATHNAME', 'hdr_agg_merge';

comment on function @extschema@._hdr_agg_merge(internal, @extschema@.hdr) is 'A step of hdr_merge.';

create function @extschema@._hdr_agg_combine(internal, internal) returns internal
language c immutable parallel safe
as 'MODULE_PATHNAME', 'hdr_agg_combine';

comment on function @extschema@._hdr_agg_combine(internal, internal) is 'Adds the state of another process.';

create function @extschema@._hdr_agg_serialize(internal) returns bytea
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_agg_serialize';

comment on function @extschema@._hdr_agg_serialize(internal) is 'The state of an aggregate for another process.';

create function @extschema@._hdr_agg_deserialize(bytea, internal) returns internal
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'hdr_agg_deserialize';

comment on function @extschema@._hdr_agg_deserialize(bytea, internal) is 'The state of an aggregate from another process.';

create function @extschema@._hdr_agg_final(internal) returns @extschema@.hdr
language c immutable parallel safe
as 'MODULE_PATHNAME', 'hdr_agg_final';

comment on function @extschema@._hdr_agg_final(internal) is 'The result of an aggregate.';

create aggregate @extschema@.hdr_agg(latency_ms double precision) (
    sfunc = @extschema@._hdr_agg_add,
    stype = internal,
    sspace = 4096,
    finalfunc = @extschema@._hdr_agg_final,
    combinefunc = @extschema@._hdr_agg_combine,
    serialfunc = @extschema@._hdr_agg_serialize,
    deserialfunc = @extschema@._hdr_agg_deserialize,
    parallel = safe
);

comment on aggregate @extschema@.hdr_agg(double precision) is
    'A histogram of latencies in ms; NULLs are left out, NULL if there are none.';

create aggregate @extschema@.hdr_merge(h @extschema@.hdr) (
    sfunc = @extschema@._hdr_agg_merge,
    stype = internal,
    sspace = 4096,
    finalfunc = @extschema@._hdr_agg_final,
    combinefunc = @extschema@._hdr_agg_combine,
    serialfunc = @extschema@._hdr_agg_serialize,
    deserialfunc = @extschema@._hdr_agg_deserialize,
    parallel = safe
);

comment on aggregate @extschema@.hdr_merge(@extschema@.hdr) is
    'All histograms added together; NULLs are left out, NULL if they hold nothing.';

-- Decisions. What changes per call comes last: the C side keeps the rest of the row ready made.
create type @extschema@.ext_decision as (
    extension_id   text,
    type           text,
    version        text,
    instance_id    text,
    subject        text,
    timeout_ms     integer,
    retry          integer,
    config         jsonb,
    allowed        boolean,
    reason         text,
    retry_after_ms integer,
    ticket         bigint,
    epoch          bigint
);

comment on type @extschema@.ext_decision is
    'Where one call goes, or why it is refused.';
comment on column @extschema@.ext_decision.extension_id is 'The id asked for.';
comment on column @extschema@.ext_decision.type is 'pre, validator, provider or post.';
comment on column @extschema@.ext_decision.version is 'The version chosen.';
comment on column @extschema@.ext_decision.instance_id is 'The instance chosen, NULL for the version''s own subject.';
comment on column @extschema@.ext_decision.subject is 'The NATS subject to send to.';
comment on column @extschema@.ext_decision.timeout_ms is 'How long one attempt may take, in ms.';
comment on column @extschema@.ext_decision.retry is 'How many more attempts a failed call may make.';
comment on column @extschema@.ext_decision.config is 'The configuration to send along.';
comment on column @extschema@.ext_decision.allowed is 'Whether the call may be made.';
comment on column @extschema@.ext_decision.reason is
    'ok, fallback_version, no_instances, panic, probe; refused: extension_not_found, extension_disabled, tenant_not_allowed, no_version, extension_circuit_open.';
comment on column @extschema@.ext_decision.retry_after_ms is 'When a refused call may be tried again, NULL if nobody knows.';
comment on column @extschema@.ext_decision.ticket is 'To be handed to ext_report; 0 if refused.';
comment on column @extschema@.ext_decision.epoch is
    'Fingerprint of the configuration the decision was made with: equal where it is equal, not ordered.';

create type @extschema@.ext_decision_item as (
    ordinality     bigint,
    extension_id   text,
    type           text,
    version        text,
    instance_id    text,
    subject        text,
    timeout_ms     integer,
    retry          integer,
    config         jsonb,
    allowed        boolean,
    reason         text,
    retry_after_ms integer,
    ticket         bigint,
    epoch          bigint
);

comment on type @extschema@.ext_decision_item is
    'One of many decisions: the place in the call''s arrays (from 1), then the columns of ext_decision.';

-- What ext_lookup returns (a type of its own, since its column id has the name of the argument).
create type @extschema@.ext_registration as (
    id                    varchar(255),
    type                  varchar(32),
    subject               varchar(512),
    timeout_ms            integer,
    retry                 integer,
    enabled               boolean,
    version               varchar(32),
    config                jsonb,
    metadata              jsonb,
    balancing             varchar(32),
    hash_key              varchar(255),
    created_at            timestamptz,
    updated_at            timestamptz,
    created_by            varchar(255),
    updated_by            varchar(255),
    circuit_breaker_state text,
    open_versions         text[],
    success_rate          double precision,
    p95_latency_ms        double precision,
    epoch                 bigint
);

comment on type @extschema@.ext_registration is
    'A row of extensions, with its health now and the fingerprint of its configuration.';

-- Live state, as the views of 50_health.sql show it. Latencies in ms; rates and latencies cover the last 5 minutes and
-- are NULL, never 0, where there is no data.
create type @extschema@._ext_live as (
    last_success                 timestamptz,
    last_failure                 timestamptz,
    success_count                bigint,
    failure_count                bigint,
    success_rate                 double precision,
    avg_latency_ms               double precision,
    p50_latency_ms               double precision,
    p95_latency_ms               double precision,
    p99_latency_ms               double precision,
    last_latency_ms              double precision,
    latency_samples              bigint,
    latency_sum                  double precision,
    latency_samples_window_start timestamptz,
    circuit_breaker_state        text,
    circuit_breaker_opened_at    timestamptz,
    half_open_requests_count     integer,
    open_versions                text[],
    updated_at                   timestamptz
);

comment on type @extschema@._ext_live is 'Live state of an extension.';

create type @extschema@._ext_live_version as (
    version                   text,
    enabled                   boolean,
    subject                   text,
    success_count             bigint,
    failure_count             bigint,
    error_count               bigint,
    timeout_count             bigint,
    no_responders_count       bigint,
    invalid_response_count    bigint,
    cancelled_count           bigint,
    caller_error_count        bigint,
    circuit_open_count        bigint,
    success_rate              double precision,
    avg_latency_ms            double precision,
    p50_latency_ms            double precision,
    p95_latency_ms            double precision,
    p99_latency_ms            double precision,
    last_latency_ms           double precision,
    latency_samples           bigint,
    last_success              timestamptz,
    last_failure              timestamptz,
    circuit_breaker_state     text,
    circuit_breaker_opened_at timestamptz,
    half_open_requests_count  integer,
    breaker_mode              text,
    window_requests           bigint,
    window_failures           bigint,
    window_slow               bigint,
    retry_after_ms            integer,
    in_flight                 bigint,
    updated_at                timestamptz
);

comment on type @extschema@._ext_live_version is 'Live state of one version.';

create type @extschema@._ext_live_instance as (
    instance_id      text,
    versions         text[],
    eligible         boolean,
    effective_weight double precision,
    success_count    bigint,
    failure_count    bigint,
    success_rate     double precision,
    avg_latency_ms   double precision,
    p50_latency_ms   double precision,
    p95_latency_ms   double precision,
    p99_latency_ms   double precision,
    last_latency_ms  double precision,
    latency_samples  bigint,
    last_success     timestamptz,
    last_failure     timestamptz,
    in_flight        bigint,
    ejected_until    timestamptz,
    updated_at       timestamptz
);

comment on type @extschema@._ext_live_instance is 'Live state of one instance.';

-- requires:
--   10_types

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

-- requires:
--   20_registry

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
create index extension_audit_log_changed_at_idx on @extschema@.extension_audit_log (changed_at);

comment on table @extschema@.extension_audit_log is
    'Every change of the registry, kept for ever and after the deletion of the extension. An entry for a rename stands under the new id, the old one is in old_values.';
comment on column @extschema@.extension_audit_log.id is 'Identity of the entry.';
comment on column @extschema@.extension_audit_log.extension_id is 'The extension.';
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

-- requires:
--   21_history

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

-- requires:
--   22_live_state

-- Triggers of the registry tables: defaults and timestamps, invalidation, renames, advice. None of them uses NOTIFY, which
-- PREPARE TRANSACTION would refuse; the worker tells the bridges. Audit is in 31_audit.sql.

-- Defaults and timestamps. NULL is filled and nothing else is touched, so that a restored row stays as it was.

create function @extschema@._ext_fill_extension() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.config := coalesce(new.config, '{}');
    new.metadata := coalesce(new.metadata, '{}');
    if tg_op = 'INSERT' then
        new.created_at := coalesce(new.created_at, now());
        new.updated_at := coalesce(new.updated_at, now());
        new.created_by := coalesce(new.created_by, current_user);
    elsif new is distinct from old and new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
        if new.updated_by is not distinct from old.updated_by then
            new.updated_by := current_user;
        end if;
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_extension() is 'Trigger: defaults and timestamps of extensions.';

create function @extschema@._ext_fill_version() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.config := coalesce(new.config, '{}');
    new.metadata := coalesce(new.metadata, '{}');
    new.routing_rules := coalesce(new.routing_rules, '{}');
    if tg_op = 'INSERT' then
        new.created_at := coalesce(new.created_at, now());
        new.created_by := coalesce(new.created_by, current_user);
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_version() is 'Trigger: defaults and timestamps of extension_versions.';

create function @extschema@._ext_fill_instance() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.weight := coalesce(new.weight, 100);
    new.health_status := coalesce(new.health_status, 'unknown');
    new.metadata := coalesce(new.metadata, '{}');
    if tg_op = 'INSERT' then
        new.created_at := coalesce(new.created_at, now());
        new.updated_at := coalesce(new.updated_at, now());
    elsif new is distinct from old and new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_instance() is 'Trigger: defaults and timestamps of extension_instances.';

create function @extschema@._ext_fill_policy() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        new.created_at := coalesce(new.created_at, now());
        new.updated_at := coalesce(new.updated_at, now());
    elsif new is distinct from old and new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_policy() is 'Trigger: timestamps of extension_policies.';

create function @extschema@._ext_fill_settings() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        new.updated_at := coalesce(new.updated_at, now());
    elsif new is distinct from old and new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_settings() is 'Trigger: timestamp of extension_health_settings.';

create trigger fill before insert or update on @extschema@.extensions
    for each row execute function @extschema@._ext_fill_extension();
create trigger fill before insert or update on @extschema@.extension_versions
    for each row execute function @extschema@._ext_fill_version();
create trigger fill before insert or update on @extschema@.extension_instances
    for each row execute function @extschema@._ext_fill_instance();
create trigger fill before insert or update on @extschema@.extension_policies
    for each row execute function @extschema@._ext_fill_policy();
create trigger fill before insert or update on @extschema@.extension_health_settings
    for each row execute function @extschema@._ext_fill_settings();

-- Invalidation: tells every session, at commit, that one extension (or all of them) has to be compiled anew. The first
-- column of each table is the extension's id. Named to fire before a user's triggers, so that these see decisions made with
-- the new row; ENABLE ALWAYS, or rows that arrive by logical replication would stay unseen for ever.

create function @extschema@._ext_invalidate() returns trigger
language c
as 'MODULE_PATHNAME', '_ext_invalidate';

comment on function @extschema@._ext_invalidate() is
    'Trigger: makes every session compile the row''s extension anew, from commit on, this transaction at once.';

create function @extschema@._ext_invalidate_all() returns trigger
language c
as 'MODULE_PATHNAME', '_ext_invalidate_all';

comment on function @extschema@._ext_invalidate_all() is
    'Trigger: makes every session compile all extensions anew, from commit on, this transaction at once.';

create trigger "!invalidate" after insert or update or delete on @extschema@.extensions
    for each row execute function @extschema@._ext_invalidate();
create trigger "!invalidate" after insert or update or delete on @extschema@.extension_versions
    for each row execute function @extschema@._ext_invalidate();
create trigger "!invalidate" after insert or update or delete on @extschema@.extension_instances
    for each row execute function @extschema@._ext_invalidate();
create trigger "!invalidate" after insert or update or delete on @extschema@.extension_health_settings
    for each row execute function @extschema@._ext_invalidate();
create trigger "!invalidate" after insert or update or delete on @extschema@.extension_breaker_resets
    for each row execute function @extschema@._ext_invalidate();

create trigger "!invalidate_truncate" after truncate on @extschema@.extensions
    for each statement execute function @extschema@._ext_invalidate_all();
create trigger "!invalidate_truncate" after truncate on @extschema@.extension_versions
    for each statement execute function @extschema@._ext_invalidate_all();
create trigger "!invalidate_truncate" after truncate on @extschema@.extension_instances
    for each statement execute function @extschema@._ext_invalidate_all();
create trigger "!invalidate_truncate" after truncate on @extschema@.extension_health_settings
    for each statement execute function @extschema@._ext_invalidate_all();
create trigger "!invalidate_truncate" after truncate on @extschema@.extension_breaker_resets
    for each statement execute function @extschema@._ext_invalidate_all();

alter table @extschema@.extensions
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";
alter table @extschema@.extension_versions
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";
alter table @extschema@.extension_instances
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";
alter table @extschema@.extension_health_settings
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";
alter table @extschema@.extension_breaker_resets
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";

-- A renamed extension takes its history along. (Versions, instances, settings and resets follow by foreign key, live state
-- hangs on the uid; the audit log keeps the names of the time.) The new name may have minutes of an extension deleted
-- before: where both have one, the renamed one's stays under its old name.

create function @extschema@._ext_rename() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    update @extschema@.extension_breaker_events e set extension_id = new.id where e.extension_id = old.id;
    update @extschema@.extension_metrics m set extension_id = new.id
    where m.extension_id = old.id
        and not exists (
            select from @extschema@.extension_metrics taken
            where (taken.minute, taken.extension_id, taken.version, taken.instance_id)
                = (m.minute, new.id, m.version, m.instance_id)
        );
    return null;
end;
$$;

comment on function @extschema@._ext_rename() is 'Trigger: takes breaker events and metrics along with a new id.';

create trigger rename after update of id on @extschema@.extensions
    for each row when (old.id is distinct from new.id)
    execute function @extschema@._ext_rename();

-- Bridges register services that speak NATS micro, and remove them; a right to insert and delete cannot be limited to such
-- rows. Who may not change instances as such, which are the bridges, writes those marked {"discovered": true} only.

create function @extschema@._ext_discovered() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_table_privilege('@extschema@.extension_instances', 'update') then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('instance "%s" of "%s" is not one that a service registered itself',
                coalesce(new.instance_id, old.instance_id), coalesce(new.extension_id, old.extension_id)),
            hint = 'Without the right to update extension_instances only rows with {"discovered": true} in metadata can be inserted and deleted; ext_grant gives the level operator.';
    end if;
    return coalesce(new, old);
end;
$$;

comment on function @extschema@._ext_discovered() is
    'Trigger: keeps roles that may not update extension_instances to the rows that services registered themselves.';

create trigger discovered_inserted before insert on @extschema@.extension_instances
    for each row when ((new.metadata @> '{"discovered": true}') is not true)
    execute function @extschema@._ext_discovered();
create trigger discovered_deleted before delete on @extschema@.extension_instances
    for each row when ((old.metadata @> '{"discovered": true}') is not true)
    execute function @extschema@._ext_discovered();

-- Advice for people at psql. Two statements do less than one may think: UPDATE extensions ... WHERE version = 'v2' (versions
-- are rows of another table), and an update of a column that the extension's version rows have for themselves.

create function @extschema@._ext_advise() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    shadowed record;
begin
    if not exists (select from new_rows) then
        -- An upsert or MERGE that only inserted comes here too; it was not meant to match.
        if current_query() !~* '\m(on\s+conflict|merge)\M' then
            raise notice using
                message = 'no row of extensions matched',
                hint = 'Versions are rows of extension_versions: UPDATE extension_versions SET ... WHERE id = ... AND version = ...';
        end if;
        return null;
    end if;

    if not has_table_privilege('@extschema@.extension_versions', 'select') then
        return null;
    end if;
    for shadowed in
        select
            o.id,
            changed.columns,
            string_agg(v.version, ', ' order by v.version) as versions,
            count(*) over () as total
        from new_rows n
        join old_rows o using (uid)
        cross join lateral (
            select concat_ws(', ',
                case when n.subject is distinct from o.subject then 'subject' end,
                case when n.timeout_ms is distinct from o.timeout_ms then 'timeout_ms' end,
                case when n.retry is distinct from o.retry then 'retry' end,
                case when n.config is distinct from o.config then 'config' end) as columns
        ) changed
        join @extschema@.extension_versions v on v.id = n.id and v.enabled
        where changed.columns <> ''
        group by o.id, changed.columns
        order by o.id
        limit 3
    loop
        raise notice using
            message = format('%s of "%s": calls that go to version %s use that row''s own',
                shadowed.columns, shadowed.id, shadowed.versions),
            hint = 'UPDATE extension_versions for these; extensions serves where no row of extension_versions matches.';
    end loop;
    if shadowed.total > 3 then
        raise notice 'the same holds for % more', shadowed.total - 3;
    end if;
    return null;
end;
$$;

comment on function @extschema@._ext_advise() is
    'Trigger: a NOTICE where an UPDATE of extensions matched nothing, or changed what version rows shadow.';

create trigger advise after update on @extschema@.extensions
    referencing old table as old_rows new table as new_rows
    for each statement execute function @extschema@._ext_advise();

-- requires:
--   30_triggers

-- The audit log: one entry per changed row of the registry.
--
-- The only functions here with rights their caller lacks (SECURITY DEFINER), so that who may change the registry need not
-- be able to write its log. Changes of last_health_check and the bookkeeping columns alone are not logged.

create function @extschema@._ext_audit() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    bookkeeping constant text[] := array['updated_at', 'updated_by', 'last_health_check'];
    key_column constant text := tg_argv[0];
    -- current_user is the owner in here; SET ROLE is still seen, and what a caller's own definer function is, is not asked.
    outer_role constant name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    old_row jsonb;
    new_row jsonb;
    action text;
begin
    if tg_op <> 'INSERT' then
        old_row := to_jsonb(old);
    end if;
    if tg_op <> 'DELETE' then
        new_row := to_jsonb(new);
    end if;

    if tg_op = 'INSERT' then
        -- A dump brings the log itself: do not log its rows a second time. pg_dump's scripts say so by this setting, and
        -- its rows are older than this transaction. For the owner only, who could disable the trigger as well.
        if current_setting('check_function_bodies') = 'off'
            and coalesce(new_row ->> 'created_at', new_row ->> 'updated_at')::timestamptz < transaction_timestamp()
            and pg_has_role(outer_role, (select c.relowner from pg_class c where c.oid = tg_relid), 'member')
        then
            return null;
        end if;
        action := 'create';
    elsif tg_op = 'DELETE' then
        action := 'delete';
    elsif old_row - bookkeeping = new_row - bookkeeping then
        return null;
    elsif (old_row - bookkeeping) - 'enabled' = (new_row - bookkeeping) - 'enabled' then
        action := case when (new_row ->> 'enabled')::boolean then 'enable' else 'disable' end;
    else
        action := 'update';
    end if;

    insert into @extschema@.extension_audit_log
        (extension_id, action, old_values, new_values, changed_by, changed_at, table_name, changed_role,
            application_name, transaction_id)
    values
        (coalesce(new_row, old_row) ->> key_column, action, old_row, new_row, session_user, clock_timestamp(),
            tg_table_name, outer_role, current_setting('application_name'), pg_current_xact_id());
    return null;
end;
$$;

comment on function @extschema@._ext_audit() is
    'Trigger: writes the change of a row into extension_audit_log; the argument names the column with the extension''s id.';

create function @extschema@._ext_audit_truncate() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    key_column constant text := tg_argv[0];
    outer_role constant name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
    execute format(
        $insert$
            insert into @extschema@.extension_audit_log
                (extension_id, action, old_values, changed_by, changed_at, table_name, changed_role, application_name,
                    transaction_id)
            select t.%1$I, 'delete', to_jsonb(t), session_user, clock_timestamp(), $1, $2,
                current_setting('application_name'), pg_current_xact_id()
            from %2$I.%3$I t
        $insert$,
        key_column, tg_table_schema, tg_table_name)
    using tg_table_name, outer_role;
    return null;
end;
$$;

comment on function @extschema@._ext_audit_truncate() is
    'Trigger: writes every row that a TRUNCATE removes into extension_audit_log, as deleted.';

create trigger audit after insert or update or delete on @extschema@.extensions
    for each row execute function @extschema@._ext_audit('id');
create trigger audit after insert or update or delete on @extschema@.extension_versions
    for each row execute function @extschema@._ext_audit('id');
create trigger audit after insert or update or delete on @extschema@.extension_instances
    for each row execute function @extschema@._ext_audit('extension_id');
create trigger audit after insert or update or delete on @extschema@.extension_health_settings
    for each row execute function @extschema@._ext_audit('extension_id');

create trigger audit_truncate before truncate on @extschema@.extensions
    for each statement execute function @extschema@._ext_audit_truncate('id');
create trigger audit_truncate before truncate on @extschema@.extension_versions
    for each statement execute function @extschema@._ext_audit_truncate('id');
create trigger audit_truncate before truncate on @extschema@.extension_instances
    for each statement execute function @extschema@._ext_audit_truncate('extension_id');
create trigger audit_truncate before truncate on @extschema@.extension_health_settings
    for each statement execute function @extschema@._ext_audit_truncate('extension_id');

-- requires:
--   31_audit

-- Rows from JSON, for whatever writes a row of which it knows some columns (extension_health, documents).

-- Columns that do not differ are not assigned: that needs no right to them, and causes neither audit nor invalidation.
create function @extschema@._ext_put(target regclass, key jsonb, document jsonb) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    given constant jsonb := document || key;
    same_row constant text := (
        select string_agg(format('t.%1$I = d.%1$I', k.name), ' and ') from jsonb_object_keys(key) k(name));
    columns text;
    had jsonb;
    want jsonb;
    written bigint;
begin
    -- Between the look and the write somebody else may insert or delete the row; then once more.
    for attempt in 1 .. 5 loop
        execute format(
            'select to_jsonb(t), to_jsonb(jsonb_populate_record(t, $1))
            from %1$s t, jsonb_populate_record(null::%1$s, $1) d where %2$s',
            target, same_row)
        into had, want
        using given;

        if had is null then
            select string_agg(quote_ident(g.name), ', ') into columns from jsonb_object_keys(given) g(name);
            execute format(
                'insert into %1$s (%2$s) select %2$s from jsonb_populate_record(null::%1$s, $1) on conflict do nothing',
                target, columns)
            using given;
        else
            select string_agg(format('%1$I = d.%1$I', c.key), ', ') into columns
            from jsonb_each(want) c
            where c.value is distinct from had -> c.key;
            if columns is null then
                return;
            end if;
            execute format(
                'update %1$s t set %3$s from jsonb_populate_record(null::%1$s, $1) d where %2$s',
                target, same_row, columns)
            using want;
        end if;
        get diagnostics written = row_count;
        if written > 0 then
            return;
        end if;
    end loop;
    raise exception using
        errcode = 'serialization_failure',
        message = format('could not write %s of %s: it comes and goes', key, target),
        hint = 'Try again; if it stays so, look for a trigger on the table that suppresses the write.';
end;
$$;

comment on function @extschema@._ext_put(regclass, jsonb, jsonb) is
    'Inserts the row of that key as the document has it, or updates the columns that differ from it.';

-- requires:
--   32_rows

-- Decisions. Functions of C: they read the registry as last committed, plus what this transaction has changed, whatever its
-- isolation level; therefore VOLATILE. They write shared memory only and so work in read-only transactions and on standbys.

create function @extschema@.ext_select(
    extension_id text,
    context jsonb default '{}',
    avoid text[] default '{}'
) returns @extschema@.ext_decision
language c volatile parallel safe
as 'MODULE_PATHNAME', 'ext_select';

comment on function @extschema@.ext_select(text, jsonb, text[]) is
    'Decides where one call goes: version by context, instance by balancing, leaving out the instances in avoid; a refusal is a row, too.';

create function @extschema@.ext_select_many(
    extension_ids text[],
    contexts jsonb[],
    avoid jsonb default null
) returns setof @extschema@.ext_decision_item
language c volatile parallel safe rows 64
as 'MODULE_PATHNAME', 'ext_select_many';

comment on function @extschema@.ext_select_many(text[], jsonb[], jsonb) is
    'Decides for many calls at once, one row each with its ordinality; avoid is an array with one list of instances per call.';

create function @extschema@.ext_explain(
    extension_id text,
    context jsonb default '{}'
) returns table (step integer, stage text, candidate text, verdict text, detail text)
language c volatile parallel safe rows 10
as 'MODULE_PATHNAME', 'ext_explain';

comment on function @extschema@.ext_explain(text, jsonb) is
    'Says why a call would go where it goes: every version and instance, and what speaks for or against it. Changes nothing.';

create function @extschema@.ext_preview(
    extension_ids text[],
    contexts jsonb[]
) returns setof @extschema@.ext_decision_item
language c volatile parallel safe rows 64
as 'MODULE_PATHNAME', 'ext_preview';

comment on function @extschema@.ext_preview(text[], jsonb[]) is
    'The decisions that these calls would get, one after the other, from the registry as this transaction has it; changes nothing: no turn, no probe, no count, ticket 0.';

create function @extschema@._ext_epoch(id text) returns bigint
language c volatile strict parallel safe
as 'MODULE_PATHNAME', '_ext_epoch';

comment on function @extschema@._ext_epoch(text) is
    'Fingerprint of an extension''s configuration, NULL if it is not registered.';

-- requires:
--   40_decide

-- Reports: how calls ended. Functions of C; they count in shared memory, outside of the transaction: a caller that rolls
-- back has still called.

create function @extschema@.ext_report(
    ticket bigint,
    outcome text,
    latency_ms double precision,
    retries integer default 0
) returns void
language c volatile parallel safe
as 'MODULE_PATHNAME', 'ext_report_ticket';

comment on function @extschema@.ext_report(bigint, text, double precision, integer) is
    'Reports how one attempt ended, by the ticket of its decision; latency in ms. A second report of a ticket changes nothing.';

create function @extschema@.ext_report(
    extension_id text,
    outcome text,
    latency_ms double precision,
    version text default null,
    instance_id text default null,
    retries integer default 0
) returns void
language c volatile parallel safe
as 'MODULE_PATHNAME', 'ext_report_target';

comment on function @extschema@.ext_report(text, text, double precision, text, text, integer) is
    'Reports how one attempt ended, by name; latency in ms. Without version: the one that an empty context gets.';

create function @extschema@.ext_report_many(
    tickets bigint[],
    outcomes text[],
    latencies_ms double precision[],
    retries integer[],
    reporter uuid default null,
    seq bigint default null,
    out applied integer,
    out flushed_seq bigint
) returns record
language c volatile parallel safe
as 'MODULE_PATHNAME', 'ext_report_many';

comment on function
    @extschema@.ext_report_many(bigint[], text[], double precision[], integer[], uuid, bigint) is
    'Reports many attempts at once, all or none; a seq that this reporter has already had applied is a no-op. flushed_seq is on disk.';

-- Outcomes of calls that were decided elsewhere (by a bridge without Postgres, on a standby), per target and minute.

create function @extschema@._ext_merge(
    doc jsonb,
    out status text,
    out minute timestamptz,
    out extension_id text,
    out version text,
    out instance_id text,
    out success bigint,
    out error bigint,
    out timeout bigint,
    out no_responders bigint,
    out invalid_response bigint,
    out cancelled bigint,
    out caller_error bigint,
    out circuit_open bigint,
    out retries bigint,
    out latency @extschema@.hdr
) returns setof record
language c volatile parallel unsafe rows 100
as 'MODULE_PATHNAME', '_ext_merge';

comment on function @extschema@._ext_merge(jsonb) is
    'Counts gathered outcomes into live state; a row for each target and minute says what became of it: live, history (too old for live state), unknown, or repeated.';

create function @extschema@.ext_report_merge(
    doc jsonb,
    out merged integer,
    out skipped integer
) returns record
language sql volatile parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
    with gathered as materialized (
        select g.* from @extschema@._ext_merge(doc) g
    ),
    -- What is too old for live state, and so for the worker, goes into the history here.
    written as (
        insert into @extschema@.extension_metrics as m
            (minute, extension_id, version, instance_id, latency,
             success, error, timeout, no_responders, invalid_response, cancelled, caller_error, circuit_open, retries)
        select g.minute, g.extension_id, g.version, g.instance_id, @extschema@.hdr_merge(g.latency),
            sum(g.success), sum(g.error), sum(g.timeout), sum(g.no_responders), sum(g.invalid_response),
            sum(g.cancelled), sum(g.caller_error), sum(g.circuit_open), sum(g.retries)
        from gathered g
        where g.status = 'history'
        group by g.minute, g.extension_id, g.version, g.instance_id
        order by g.minute, g.extension_id, g.version, g.instance_id
        on conflict (minute, extension_id, version, instance_id) do update
        set latency = coalesce(@extschema@.hdr_merge(m.latency, excluded.latency), m.latency, excluded.latency),
            success = m.success + excluded.success,
            error = m.error + excluded.error,
            timeout = m.timeout + excluded.timeout,
            no_responders = m.no_responders + excluded.no_responders,
            invalid_response = m.invalid_response + excluded.invalid_response,
            cancelled = m.cancelled + excluded.cancelled,
            caller_error = m.caller_error + excluded.caller_error,
            circuit_open = m.circuit_open + excluded.circuit_open,
            retries = m.retries + excluded.retries
    )
    select
        count(*) filter (where g.status in ('live', 'history'))::integer,
        count(*) filter (where g.status in ('unknown', 'repeated'))::integer
    from gathered g
$$;

comment on function @extschema@.ext_report_merge(jsonb) is
    'Adds outcomes gathered elsewhere, per target and minute, to counts and history, never to breakers; a document with a reporter and a seq counts once. merged and skipped count targets (a version and an instance are two).';

-- requires:
--   41_report

-- Health: live state joined to the registry, as one would look at it in psql.
--
-- The functions say how many rows to expect (default: 1000), or the planner would take joins of these views for big ones.

create function @extschema@._ext_live_extension(id text) returns @extschema@._ext_live
language c volatile strict parallel safe
as 'MODULE_PATHNAME', '_ext_live_extension';

comment on function @extschema@._ext_live_extension(text) is 'Live state of an extension, summed over its versions.';

create function @extschema@._ext_live_versions(id text) returns setof @extschema@._ext_live_version
language c volatile strict parallel safe rows 3
as 'MODULE_PATHNAME', '_ext_live_versions';

comment on function @extschema@._ext_live_versions(text) is
    'Live state of an extension''s versions, the one that the row of extensions is included.';

create function @extschema@._ext_live_instance(extension_id text, instance_id text) returns @extschema@._ext_live_instance
language c volatile strict parallel safe
as 'MODULE_PATHNAME', '_ext_live_instance';

comment on function @extschema@._ext_live_instance(text, text) is 'Live state of an instance.';

create function @extschema@._ext_merged_latency(
    out samples bigint,
    out avg_ms double precision,
    out p50_ms double precision,
    out p95_ms double precision,
    out p99_ms double precision
) returns record
language c volatile parallel safe
as 'MODULE_PATHNAME', '_ext_merged_latency';

comment on function @extschema@._ext_merged_latency() is
    'Latencies of the last 5 minutes, the histograms of all extensions merged; NULL without data.';

create view @extschema@._ext_settings as
select s.*
from @extschema@.extension_health_settings s
union all
-- The defaults of extension_health_settings, for extensions without a row there.
select e.id, 5, 0.01, 0.5, 5, 60, 60, null, null, 3, 'auto', 5, 50, null
from @extschema@.extensions e
where not exists (select from @extschema@.extension_health_settings s where s.extension_id = e.id);

comment on view @extschema@._ext_settings is 'The settings of every extension: its stored row, or the defaults.';

create view @extschema@.extension_health as
select
    e.id as extension_id,
    l.last_success,
    l.last_failure,
    l.success_count,
    l.failure_count,
    l.avg_latency_ms,
    l.p50_latency_ms,
    l.p95_latency_ms,
    l.p99_latency_ms,
    l.last_latency_ms,
    l.latency_samples,
    l.latency_sum,
    l.latency_samples_window_start,
    l.circuit_breaker_state::varchar(32) as circuit_breaker_state,
    l.circuit_breaker_opened_at,
    s.circuit_breaker_failure_threshold,
    s.circuit_breaker_error_rate_threshold::numeric as circuit_breaker_error_rate_threshold,
    s.circuit_breaker_window_seconds,
    s.half_open_max_requests,
    l.half_open_requests_count,
    greatest(l.updated_at, s.updated_at) as updated_at,
    l.success_rate,
    l.open_versions,
    s.circuit_breaker_failure_min_rate,
    s.circuit_breaker_minimum_requests,
    s.circuit_breaker_timeout_seconds,
    s.slow_call_ms,
    s.slow_call_rate_threshold,
    s.breaker_mode,
    s.ejection_consecutive_failures,
    s.max_ejection_percent
from @extschema@.extensions e
join @extschema@._ext_settings s on s.extension_id = e.id
cross join lateral @extschema@._ext_live_extension(e.id) l;

comment on view @extschema@.extension_health is
    'Health of every extension: live state, and the settings of its breakers. The settings may be updated; setting circuit_breaker_state to ''closed'' resets all its versions at commit.';
comment on column @extschema@.extension_health.extension_id is 'The extension.';
comment on column @extschema@.extension_health.last_success is 'When a call last succeeded.';
comment on column @extschema@.extension_health.last_failure is 'When a call last failed.';
comment on column @extschema@.extension_health.success_count is 'Successes since the statistics were last reset.';
comment on column @extschema@.extension_health.failure_count is 'Failures since the statistics were last reset.';
comment on column @extschema@.extension_health.avg_latency_ms is 'Mean latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_health.p50_latency_ms is 'Median latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_health.p95_latency_ms is '95th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_health.p99_latency_ms is '99th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_health.last_latency_ms is 'Latency of the last call, in ms.';
comment on column @extschema@.extension_health.latency_samples is 'Latencies in the last 5 minutes.';
comment on column @extschema@.extension_health.latency_sum is 'Their sum, in ms.';
comment on column @extschema@.extension_health.latency_samples_window_start is 'Since when they are counted.';
comment on column @extschema@.extension_health.circuit_breaker_state is
    'closed, half_open or open: the worst of its versions, leaving out those that can serve nobody. May be set to ''closed''.';
comment on column @extschema@.extension_health.circuit_breaker_opened_at is 'Since when it is open.';
comment on column @extschema@.extension_health.circuit_breaker_failure_threshold is
    'Setting (5): failures within the window that open; NULL: the count does not open.';
comment on column @extschema@.extension_health.circuit_breaker_error_rate_threshold is
    'Setting (0.5): failures / outcomes within the window that open; NULL: the rate does not open.';
comment on column @extschema@.extension_health.circuit_breaker_window_seconds is 'Setting (60): length of the window in s, 1 to 3600.';
comment on column @extschema@.extension_health.half_open_max_requests is
    'Setting (3): probes at once while half open, and successes needed to close; 1 to 100.';
comment on column @extschema@.extension_health.half_open_requests_count is 'Probes under way.';
comment on column @extschema@.extension_health.updated_at is 'The last outcome or change of settings.';
comment on column @extschema@.extension_health.success_rate is 'Successes / outcomes of the last 5 minutes.';
comment on column @extschema@.extension_health.open_versions is 'The versions whose breaker is open.';
comment on column @extschema@.extension_health.circuit_breaker_failure_min_rate is
    'Setting (0.01): the count of failures opens only at or above this error rate; NULL: always.';
comment on column @extschema@.extension_health.circuit_breaker_minimum_requests is
    'Setting (5): with fewer outcomes in the window no rate opens.';
comment on column @extschema@.extension_health.circuit_breaker_timeout_seconds is
    'Setting (60): how long it stays open before probing, in s; longer for each re-opening without a recovery.';
comment on column @extschema@.extension_health.slow_call_ms is 'Setting (NULL): a success slower than this, in ms, is a slow call.';
comment on column @extschema@.extension_health.slow_call_rate_threshold is
    'Setting (NULL): share of slow calls in the window that opens.';
comment on column @extschema@.extension_health.breaker_mode is 'Setting (auto): auto, forced_open, forced_closed or metrics_only.';
comment on column @extschema@.extension_health.ejection_consecutive_failures is
    'Setting (5): failures in a row that take an instance out for a while; NULL: none do.';
comment on column @extschema@.extension_health.max_ejection_percent is
    'Setting (50): at most this share of the instances is out at once.';

create view @extschema@.extension_version_health as
select
    e.id as extension_id,
    l.version,
    l.enabled,
    l.subject,
    l.circuit_breaker_state,
    l.circuit_breaker_opened_at,
    l.breaker_mode,
    l.success_rate,
    l.success_count,
    l.failure_count,
    l.error_count,
    l.timeout_count,
    l.no_responders_count,
    l.invalid_response_count,
    l.cancelled_count,
    l.caller_error_count,
    l.circuit_open_count,
    l.avg_latency_ms,
    l.p50_latency_ms,
    l.p95_latency_ms,
    l.p99_latency_ms,
    l.last_latency_ms,
    l.latency_samples,
    l.last_success,
    l.last_failure,
    l.window_requests,
    l.window_failures,
    l.window_slow,
    l.half_open_requests_count,
    l.retry_after_ms,
    l.in_flight,
    l.updated_at
from @extschema@.extensions e
cross join lateral @extschema@._ext_live_versions(e.id) l;

comment on view @extschema@.extension_version_health is
    'Health of every version, the one that the row of extensions is included.';
comment on column @extschema@.extension_version_health.extension_id is 'The extension.';
comment on column @extschema@.extension_version_health.version is 'The version.';
comment on column @extschema@.extension_version_health.enabled is 'Whether it may be chosen.';
comment on column @extschema@.extension_version_health.subject is 'Its NATS subject.';
comment on column @extschema@.extension_version_health.circuit_breaker_state is 'closed, half_open or open.';
comment on column @extschema@.extension_version_health.circuit_breaker_opened_at is 'Since when it is open.';
comment on column @extschema@.extension_version_health.breaker_mode is 'auto, forced_open, forced_closed or metrics_only.';
comment on column @extschema@.extension_version_health.success_rate is 'Successes / outcomes of the last 5 minutes.';
comment on column @extschema@.extension_version_health.success_count is 'Successes since the statistics were last reset.';
comment on column @extschema@.extension_version_health.failure_count is 'Failures since the statistics were last reset.';
comment on column @extschema@.extension_version_health.error_count is 'Of these: answered with an error.';
comment on column @extschema@.extension_version_health.timeout_count is 'Of these: not answered in time.';
comment on column @extschema@.extension_version_health.no_responders_count is 'Of these: nobody listened.';
comment on column @extschema@.extension_version_health.invalid_response_count is 'Of these: answered with something of the wrong shape.';
comment on column @extschema@.extension_version_health.cancelled_count is 'Given up by the caller; neither success nor failure.';
comment on column @extschema@.extension_version_health.caller_error_count is 'The caller''s fault; neither success nor failure.';
comment on column @extschema@.extension_version_health.circuit_open_count is 'Calls refused by the open breaker.';
comment on column @extschema@.extension_version_health.avg_latency_ms is 'Mean latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_version_health.p50_latency_ms is 'Median latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_version_health.p95_latency_ms is '95th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_version_health.p99_latency_ms is '99th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_version_health.last_latency_ms is 'Latency of the last call, in ms.';
comment on column @extschema@.extension_version_health.latency_samples is 'Latencies in the last 5 minutes.';
comment on column @extschema@.extension_version_health.last_success is 'When a call last succeeded.';
comment on column @extschema@.extension_version_health.last_failure is 'When a call last failed.';
comment on column @extschema@.extension_version_health.window_requests is 'Outcomes in the breaker''s window.';
comment on column @extschema@.extension_version_health.window_failures is 'Failures in the breaker''s window.';
comment on column @extschema@.extension_version_health.window_slow is 'Slow calls in the breaker''s window.';
comment on column @extschema@.extension_version_health.half_open_requests_count is 'Probes under way.';
comment on column @extschema@.extension_version_health.retry_after_ms is 'When the breaker may admit a call again, in ms.';
comment on column @extschema@.extension_version_health.in_flight is 'Calls decided and not yet reported.';
comment on column @extschema@.extension_version_health.updated_at is 'The last outcome.';

create view @extschema@.extension_instance_health as
select
    i.extension_id,
    i.instance_id,
    l.versions,
    i.enabled,
    i.health_status,
    i.draining,
    l.eligible,
    i.weight,
    l.effective_weight,
    l.ejected_until,
    l.success_rate,
    l.success_count,
    l.failure_count,
    l.avg_latency_ms,
    l.p50_latency_ms,
    l.p95_latency_ms,
    l.p99_latency_ms,
    l.last_latency_ms,
    l.latency_samples,
    l.last_success,
    l.last_failure,
    l.in_flight,
    i.last_health_check,
    l.updated_at
from @extschema@.extension_instances i
cross join lateral @extschema@._ext_live_instance(i.extension_id, i.instance_id) l;

comment on view @extschema@.extension_instance_health is 'Health of every instance.';
comment on column @extschema@.extension_instance_health.extension_id is 'The extension.';
comment on column @extschema@.extension_instance_health.instance_id is 'The instance.';
comment on column @extschema@.extension_instance_health.versions is 'The versions it serves.';
comment on column @extschema@.extension_instance_health.enabled is 'As registered.';
comment on column @extschema@.extension_instance_health.health_status is 'As registered.';
comment on column @extschema@.extension_instance_health.draining is 'As registered.';
comment on column @extschema@.extension_instance_health.eligible is 'Whether it may be chosen now.';
comment on column @extschema@.extension_instance_health.weight is 'As registered.';
comment on column @extschema@.extension_instance_health.effective_weight is 'What is left of it: halved if degraded.';
comment on column @extschema@.extension_instance_health.ejected_until is 'Until when it is left out because calls to it failed.';
comment on column @extschema@.extension_instance_health.success_rate is 'Successes / outcomes of the last 5 minutes.';
comment on column @extschema@.extension_instance_health.success_count is 'Successes since the statistics were last reset.';
comment on column @extschema@.extension_instance_health.failure_count is 'Failures since the statistics were last reset.';
comment on column @extschema@.extension_instance_health.avg_latency_ms is 'Mean latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_instance_health.p50_latency_ms is 'Median latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_instance_health.p95_latency_ms is '95th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_instance_health.p99_latency_ms is '99th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_instance_health.last_latency_ms is 'Latency of the last call, in ms.';
comment on column @extschema@.extension_instance_health.latency_samples is 'Latencies in the last 5 minutes.';
comment on column @extschema@.extension_instance_health.last_success is 'When a call last succeeded.';
comment on column @extschema@.extension_instance_health.last_failure is 'When a call last failed.';
comment on column @extschema@.extension_instance_health.in_flight is 'Calls decided and not yet reported.';
comment on column @extschema@.extension_instance_health.last_health_check is 'As registered.';
comment on column @extschema@.extension_instance_health.updated_at is 'The last outcome.';

-- requires:
--   50_health

-- Breakers by hand: ext_breaker_reset, and extension_health as something one can update.

create function @extschema@._ext_raise_reset(id text, version text) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    insert into @extschema@.extension_breaker_resets as r (extension_id, version, epoch, changed_by)
    values (_ext_raise_reset.id, _ext_raise_reset.version, 1, session_user)
    on conflict (extension_id, version) do update
    set epoch = r.epoch + 1, changed_by = excluded.changed_by, changed_at = excluded.changed_at
$$;

comment on function @extschema@._ext_raise_reset(text, text) is
    'Asks for the reset of a version''s breaker (empty: of all versions), which happens at commit.';

create function @extschema@.ext_breaker_reset(id text, version text default null) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    names text;
begin
    if not exists (select from @extschema@.extensions e where e.id = ext_breaker_reset.id) then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s is not registered', coalesce(to_json(left(id, 100))::text, 'NULL')),
            hint = 'See the registered ones with: select id from extensions.';
    end if;

    if version is null then
        perform @extschema@._ext_raise_reset(id, '');
        return (select l.circuit_breaker_state from @extschema@._ext_live_extension(id) l);
    end if;

    select string_agg(l.version, ', ') into names from @extschema@._ext_live_versions(id) l;
    if not exists (
        select from @extschema@._ext_live_versions(id) l where l.version = ext_breaker_reset.version
    ) then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s has no version %s', to_json(id), to_json(left(version, 100))),
            hint = format('It has %s.', names);
    end if;
    perform @extschema@._ext_raise_reset(id, version);
    return (
        select l.circuit_breaker_state from @extschema@._ext_live_versions(id) l
        where l.version = ext_breaker_reset.version
    );
end;
$$;

comment on function @extschema@.ext_breaker_reset(text, text) is
    'Closes the breaker of one version, or of all versions, and clears its window; returns the new state. Counts in the metrics stay.';

create function @extschema@.ext_breaker_force(id text, mode text, version text default null) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from @extschema@.extensions e where e.id = ext_breaker_force.id) then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s is not registered', coalesce(to_json(left(id, 100))::text, 'NULL')),
            hint = 'See the registered ones with: select id from extensions.';
    end if;
    if mode is null or mode <> all (array['auto', 'forced_open', 'forced_closed', 'metrics_only']) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('unknown breaker mode %s', coalesce(to_json(left(mode, 100))::text, 'NULL')),
            hint = 'Modes are auto, forced_open, forced_closed and metrics_only.';
    end if;

    if version is null then
        insert into @extschema@.extension_health_settings as s (extension_id, breaker_mode)
        values (id, mode)
        on conflict (extension_id) do update set breaker_mode = excluded.breaker_mode;
        return (select l.circuit_breaker_state from @extschema@._ext_live_extension(id) l);
    end if;

    update @extschema@.extension_versions v
    set breaker_mode = mode
    where v.id = ext_breaker_force.id and v.version = ext_breaker_force.version;
    if not found then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s has no version %s in extension_versions',
                to_json(id), to_json(left(version, 100))),
            hint = 'Without a version the mode is set for the extension, and so for every version that has none of its own.';
    end if;
    return (
        select l.circuit_breaker_state from @extschema@._ext_live_versions(id) l
        where l.version = ext_breaker_force.version
    );
end;
$$;

comment on function @extschema@.ext_breaker_force(text, text, text) is
    'Takes the decision from the breaker of one version, or of the extension (forced_open, forced_closed, metrics_only), or gives it back (auto); returns the new state.';

-- An UPDATE writes those settings that it changes, so that two of them at once do not undo each other.
create function @extschema@._ext_health_update() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    settings constant text[] := array[
        'circuit_breaker_failure_threshold', 'circuit_breaker_failure_min_rate', 'circuit_breaker_error_rate_threshold',
        'circuit_breaker_minimum_requests', 'circuit_breaker_window_seconds', 'circuit_breaker_timeout_seconds',
        'slow_call_ms', 'slow_call_rate_threshold', 'half_open_max_requests', 'breaker_mode',
        'ejection_consecutive_failures', 'max_ejection_percent'];
    changed constant text[] := array(
        select n.key from jsonb_each(to_jsonb(new)) n where n.value is distinct from to_jsonb(old) -> n.key);
begin
    if 'circuit_breaker_state' = any (changed) and new.circuit_breaker_state is distinct from 'closed' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('circuit_breaker_state can only be set to ''closed'', not to %s',
                coalesce(quote_literal(new.circuit_breaker_state), 'NULL')),
            hint = format('To open a breaker by hand: SELECT ext_breaker_force(%L, ''forced_open'');', old.extension_id);
    end if;

    if 'circuit_breaker_opened_at' = any (changed)
        and not (new.circuit_breaker_opened_at is null and new.circuit_breaker_state = 'closed')
    then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'cannot update column circuit_breaker_opened_at of extension_health: it is measured',
            hint = 'It may be set to NULL together with circuit_breaker_state = ''closed''.';
    end if;

    if 'extension_id' = any (changed) then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'cannot update column extension_id of extension_health',
            hint = format('UPDATE extensions SET id = %L WHERE id = %L; renames it.', new.extension_id, old.extension_id);
    end if;

    if changed && settings then
        perform @extschema@._ext_put('@extschema@.extension_health_settings',
            jsonb_build_object('extension_id', new.extension_id),
            (
                select jsonb_object_agg(n.key, n.value)
                from jsonb_each(to_jsonb(new)) n
                where n.key = any (changed) and n.key = any (settings)
            ));
    end if;

    if 'circuit_breaker_state' = any (changed) then
        perform @extschema@._ext_raise_reset(new.extension_id, '');
    end if;

    -- What RETURNING shows is what the view shows now.
    select h.* into new from @extschema@.extension_health h where h.extension_id = old.extension_id;
    return new;
end;
$$;

comment on function @extschema@._ext_health_update() is
    'Trigger: writes the changed settings of extension_health; circuit_breaker_state = ''closed'' resets all versions at commit.';

create function @extschema@._ext_health_measured() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = 'cannot update what is measured in extension_health',
        detail = format('Measured are %s.', (
            select string_agg(a.attname, ', ' order by a.attnum)
            from pg_trigger t
            join pg_attribute a on a.attrelid = t.tgrelid and a.attnum = any (t.tgattr)
            where t.tgrelid = tg_relid and t.tgname = tg_name)),
        hint = 'The settings columns can be updated, and circuit_breaker_state can be set to ''closed''.';
end;
$$;

comment on function @extschema@._ext_health_measured() is 'Trigger: refuses an UPDATE of the measured columns of extension_health.';

create function @extschema@._ext_health_refuse() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = case tg_op
            when 'INSERT' then 'cannot insert into extension_health: every registered extension is in it'
            else 'cannot delete from extension_health: every registered extension is in it' end,
        hint = case tg_op
            when 'INSERT' then 'INSERT INTO extensions registers one; UPDATE extension_health changes its settings.'
            else 'DELETE FROM extensions removes one; SELECT ext_breaker_reset(id) resets its breakers.' end;
end;
$$;

comment on function @extschema@._ext_health_refuse() is 'Trigger: refuses INSERT and DELETE on extension_health.';

-- For the statement, since a row does not tell that a column was assigned what it had.
create trigger measured before update of
        last_success, last_failure, success_count, failure_count, success_rate, avg_latency_ms, p50_latency_ms,
        p95_latency_ms, p99_latency_ms, last_latency_ms, latency_samples, latency_sum, latency_samples_window_start,
        half_open_requests_count, open_versions, updated_at
    on @extschema@.extension_health
    for each statement execute function @extschema@._ext_health_measured();
create trigger update_settings instead of update on @extschema@.extension_health
    for each row execute function @extschema@._ext_health_update();
create trigger refuse instead of insert or delete on @extschema@.extension_health
    for each row execute function @extschema@._ext_health_refuse();

-- requires:
--   51_breaker

-- Look-ups: the registered rows, disabled ones too, each with its health now. An unknown id gives no row.

-- The epoch is read before the row, in a statement of its own: what somebody commits between the two makes the epoch too
-- old, never too new for the row. So whoever registers with it (ext_register) is refused rather than undoing that change.
create function @extschema@.ext_lookup(id text) returns setof @extschema@.ext_registration
language plpgsql volatile strict parallel safe rows 1
set search_path = pg_catalog, pg_temp
as $$
declare
    known_epoch constant bigint := @extschema@._ext_epoch(id);
begin
    return query
    select
        e.id, e.type, e.subject, e.timeout_ms, e.retry, e.enabled, e.version, e.config, e.metadata, e.balancing, e.hash_key,
        e.created_at, e.updated_at, e.created_by, e.updated_by,
        l.circuit_breaker_state, l.open_versions, l.success_rate, l.p95_latency_ms, known_epoch
    from @extschema@.extensions e
    cross join lateral @extschema@._ext_live_extension(e.id) l
    where e.id = ext_lookup.id and known_epoch is not null;
end;
$$;

comment on function @extschema@.ext_lookup(text) is
    'The registered extension of that id, with its health; no row if there is none.';

create function @extschema@.ext_lookup_by_type(type text) returns setof @extschema@.ext_registration
language sql volatile strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select l.*
    from @extschema@.extensions e
    cross join lateral @extschema@.ext_lookup(e.id) l
    where e.type = ext_lookup_by_type.type
    order by e.id
$$;

comment on function @extschema@.ext_lookup_by_type(text) is
    'The registered extensions of that type (pre, validator, provider, post), with their health, by id.';

create function @extschema@.ext_versions(id text)
returns table (
    version                   varchar(32),
    subject                   varchar(512),
    timeout_ms                integer,
    retry                     integer,
    config                    jsonb,
    metadata                  jsonb,
    routing_rules             jsonb,
    rollout_percent           numeric(5, 2),
    rollout_key               varchar(255),
    enabled                   boolean,
    created_at                timestamptz,
    created_by                varchar(255),
    circuit_breaker_state     text,
    circuit_breaker_opened_at timestamptz,
    breaker_mode              text,
    success_count             bigint,
    failure_count             bigint,
    success_rate              double precision,
    p95_latency_ms            double precision,
    in_flight                 bigint
)
language sql volatile strict parallel safe rows 3
set search_path = pg_catalog, pg_temp
as $$
    select
        v.version, v.subject, v.timeout_ms, v.retry, v.config, v.metadata, v.routing_rules, v.rollout_percent, v.rollout_key,
        v.enabled, v.created_at, v.created_by,
        l.circuit_breaker_state, l.circuit_breaker_opened_at, l.breaker_mode,
        l.success_count, l.failure_count, l.success_rate, l.p95_latency_ms, l.in_flight
    from @extschema@.extension_versions v
    left join @extschema@._ext_live_versions(ext_versions.id) l on l.version = v.version
    where v.id = ext_versions.id
    order by v.version
$$;

comment on function @extschema@.ext_versions(text) is
    'The registered versions of an extension, with their health, by name.';

create function @extschema@.ext_instances(id text)
returns table (
    instance_id       varchar(255),
    subject           varchar(512),
    version           varchar(32),
    weight            integer,
    enabled           boolean,
    draining          boolean,
    health_status     varchar(32),
    last_health_check timestamptz,
    metadata          jsonb,
    created_at        timestamptz,
    updated_at        timestamptz,
    versions          text[],
    eligible          boolean,
    effective_weight  double precision,
    ejected_until     timestamptz,
    success_count     bigint,
    failure_count     bigint,
    success_rate      double precision,
    p95_latency_ms    double precision,
    in_flight         bigint
)
language sql volatile strict parallel safe rows 5
set search_path = pg_catalog, pg_temp
as $$
    select
        i.instance_id, i.subject, i.version, i.weight, i.enabled, i.draining, i.health_status, i.last_health_check,
        i.metadata, i.created_at, i.updated_at,
        l.versions, l.eligible, l.effective_weight, l.ejected_until,
        l.success_count, l.failure_count, l.success_rate, l.p95_latency_ms, l.in_flight
    from @extschema@.extension_instances i
    cross join lateral @extschema@._ext_live_instance(i.extension_id, i.instance_id) l
    where i.extension_id = ext_instances.id
    order by i.instance_id
$$;

comment on function @extschema@.ext_instances(text) is
    'The registered instances of an extension, with the versions they serve and their health, by name.';

create function @extschema@.ext_health(id text)
returns table (
    extension_id              varchar(255),
    last_success              timestamptz,
    last_failure              timestamptz,
    success_count             bigint,
    failure_count             bigint,
    success_rate              double precision,
    avg_latency_ms            double precision,
    p50_latency_ms            double precision,
    p95_latency_ms            double precision,
    p99_latency_ms            double precision,
    circuit_breaker_state     text,
    circuit_breaker_opened_at timestamptz
)
language sql volatile strict parallel safe rows 1
set search_path = pg_catalog, pg_temp
as $$
    select
        h.extension_id, h.last_success, h.last_failure, h.success_count, h.failure_count, h.success_rate, h.avg_latency_ms,
        h.p50_latency_ms, h.p95_latency_ms, h.p99_latency_ms, h.circuit_breaker_state, h.circuit_breaker_opened_at
    from @extschema@.extension_health h
    where h.extension_id = ext_health.id
$$;

comment on function @extschema@.ext_health(text) is
    'Health of one extension; rates and latencies of the last 5 minutes, in ms. extension_health shows more.';

create function @extschema@.ext_health_all()
returns table (
    extension_id              varchar(255),
    last_success              timestamptz,
    last_failure              timestamptz,
    success_count             bigint,
    failure_count             bigint,
    success_rate              double precision,
    avg_latency_ms            double precision,
    p50_latency_ms            double precision,
    p95_latency_ms            double precision,
    p99_latency_ms            double precision,
    circuit_breaker_state     text,
    circuit_breaker_opened_at timestamptz
)
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select
        h.extension_id, h.last_success, h.last_failure, h.success_count, h.failure_count, h.success_rate, h.avg_latency_ms,
        h.p50_latency_ms, h.p95_latency_ms, h.p99_latency_ms, h.circuit_breaker_state, h.circuit_breaker_opened_at
    from @extschema@.extension_health h
    order by h.extension_id
$$;

comment on function @extschema@.ext_health_all() is
    'Health of every extension; rates and latencies of the last 5 minutes, in ms.';

create function @extschema@.ext_health_summary(
    out total bigint,
    out healthy bigint,
    out unhealthy bigint,
    out half_open bigint,
    out avg_success_rate double precision,
    out avg_latency_ms double precision,
    out p50_latency_ms double precision,
    out p95_latency_ms double precision,
    out p99_latency_ms double precision,
    out avg_p95_latency_ms double precision
) returns record
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select
        h.total, h.healthy, h.unhealthy, h.half_open, h.avg_success_rate,
        m.avg_ms, m.p50_ms, m.p95_ms, m.p99_ms, h.avg_p95_latency_ms
    from (
        select
            count(*) as total,
            count(*) filter (where s.circuit_breaker_state = 'closed') as healthy,
            count(*) filter (where s.circuit_breaker_state = 'open') as unhealthy,
            count(*) filter (where s.circuit_breaker_state = 'half_open') as half_open,
            avg(s.success_rate) as avg_success_rate,
            avg(s.p95_latency_ms) as avg_p95_latency_ms
        from @extschema@.extension_health s
    ) h
    cross join @extschema@._ext_merged_latency() m
$$;

comment on function @extschema@.ext_health_summary() is
    'Health of the registry: breakers closed (healthy), open (unhealthy) and half open, mean success rate of the extensions with data, latencies of all calls merged. avg_p95_latency_ms, a mean of percentiles, is for old dashboards: use p95_latency_ms.';

-- requires:
--   52_lookup

-- What has been measured, over spans of time: the last five minutes from live state, what is older from extension_metrics.
--
-- Percentiles are those of merged histograms, never means of percentiles. Without a version or an instance an extension is the
-- sum of its versions; an instance is counted over all versions that it serves.

create function @extschema@._ext_live_since() returns timestamptz
language c volatile parallel safe
as 'MODULE_PATHNAME', '_ext_live_since';

comment on function @extschema@._ext_live_since() is
    'The first minute that live state speaks for; what is older is in extension_metrics alone.';

create function @extschema@._ext_live_minutes(
    id text,
    version text,
    instance_id text,
    out minute timestamptz,
    out success bigint,
    out error bigint,
    out timeout bigint,
    out no_responders bigint,
    out invalid_response bigint,
    out cancelled bigint,
    out caller_error bigint,
    out circuit_open bigint,
    out retries bigint,
    out latency @extschema@.hdr
) returns setof record
language c volatile parallel safe rows 10
as 'MODULE_PATHNAME', '_ext_live_minutes';

comment on function @extschema@._ext_live_minutes(text, text, text) is
    'Outcomes and latencies of the last five minutes: of an instance, of a version, or of all versions.';

create function @extschema@._ext_minutes(
    id text,
    since interval,
    version text,
    instance_id text,
    out minute timestamptz,
    out requests bigint,
    out failures bigint,
    out latency @extschema@.hdr
) returns setof record
language plpgsql volatile parallel safe rows 60
set search_path = pg_catalog, pg_temp
as $$
declare
    this_minute constant timestamptz := date_trunc('minute', clock_timestamp());
    live_since constant timestamptz := @extschema@._ext_live_since();
    first_minute timestamptz;
begin
    if since is null or since <= interval '0' or since > interval '100 years' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('since is %s', coalesce(since::text, 'NULL')),
            hint = 'Pass how far to look back, such as ''5 min'' or ''7 days''.';
    end if;
    if version is not null and instance_id is not null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('both version %s and instance %s are given',
                to_json(left(version, 100)), to_json(left(instance_id, 100))),
            hint = 'Pass one of them: an instance is counted over all versions that it serves.';
    end if;
    if id is null or not (
        exists (select from @extschema@.extensions e where e.id = _ext_minutes.id)
        or exists (select from @extschema@.extension_metrics m where m.extension_id = _ext_minutes.id)
    ) then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s is not registered', coalesce(to_json(left(id, 100))::text, 'NULL')),
            hint = 'See the registered ones with: select id from extensions.';
    end if;

    -- Whole minutes: '5 min' are this one and the four before it.
    first_minute := least(this_minute, date_trunc('minute', this_minute - since) + interval '1 min');
    return query
    select
        l.minute,
        l.success + l.error + l.timeout + l.no_responders + l.invalid_response,
        l.error + l.timeout + l.no_responders + l.invalid_response,
        l.latency
    from @extschema@._ext_live_minutes(id, version, instance_id) l
    where l.minute >= first_minute
    union all
    select
        m.minute,
        m.success + m.error + m.timeout + m.no_responders + m.invalid_response,
        m.error + m.timeout + m.no_responders + m.invalid_response,
        m.latency
    from @extschema@.extension_metrics m
    where m.extension_id = _ext_minutes.id
        and m.minute >= first_minute
        and m.minute < live_since
        and case
            when _ext_minutes.instance_id is not null then m.instance_id = _ext_minutes.instance_id
            when _ext_minutes.version is not null then m.version = _ext_minutes.version and m.instance_id = ''
            else m.instance_id = ''
        end;
end;
$$;

comment on function @extschema@._ext_minutes(text, interval, text, text) is
    'Attempts, failures and latencies by minute, live and stored together.';

create function @extschema@.ext_latency(
    id text,
    quantile double precision,
    since interval default '5 min',
    version text default null,
    instance_id text default null
) returns double precision
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select @extschema@.hdr_quantile(@extschema@.hdr_merge(m.latency), quantile)
    from @extschema@._ext_minutes(id, since, version, instance_id) m
$$;

comment on function @extschema@.ext_latency(text, double precision, interval, text, text) is
    'The latency in ms at a quantile (0 to 1) over the time since then, NULL without data: of an extension, one of its versions, or one of its instances.';

-- The edges of a histogram to look at: 1-2-5 steps over decades, even steps where the latencies are of one size.
create function @extschema@._ext_edges(low double precision, high double precision)
returns table (from_ms double precision, to_ms double precision)
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    with step as (
        select s.size
        from generate_series(-3, 6) decade
        cross join lateral unnest(array[1, 2, 5]) digit
        cross join lateral (select (digit * 10::numeric ^ decade)::double precision as size) s
        where s.size * 12 >= high - low
        order by s.size
        limit 1
    ),
    edge as (
        select (digit * 10::numeric ^ decade)::double precision as at
        from generate_series(-3, 6) decade
        cross join lateral unnest(array[1, 2, 5]) digit
        where high > 4 * low
        union all
        select 0 where high > 4 * low
        union all
        select n * step.size
        from step
        cross join lateral generate_series(floor(low / step.size)::bigint, floor(high / step.size)::bigint + 1) n
        where high <= 4 * low
    ),
    ranges as (
        select e.at as from_ms, lead(e.at) over (order by e.at) as to_ms from edge e
    )
    select r.from_ms, r.to_ms
    from ranges r
    where r.to_ms > low and r.from_ms <= high
    order by r.from_ms
$$;

comment on function @extschema@._ext_edges(double precision, double precision) is
    'Ranges that cover latencies from low to high, some ten to twenty of them.';

create function @extschema@.ext_latency_histogram(
    id text,
    since interval default '5 min',
    version text default null,
    instance_id text default null
)
returns table (range text, count bigint, percent numeric, bar text)
language sql volatile parallel safe rows 15
set search_path = pg_catalog, pg_temp
as $$
    with merged as materialized (
        select @extschema@.hdr_merge(m.latency) as latency
        from @extschema@._ext_minutes(id, since, version, instance_id) m
    ),
    bucket as materialized (
        select (b.from_ms + b.to_ms) / 2 as middle, b.count
        from merged m
        cross join lateral @extschema@.hdr_buckets(m.latency) b
    ),
    binned as (
        select e.from_ms, e.to_ms, coalesce(sum(b.count), 0)::bigint as count
        from (select min(b.middle) as low, max(b.middle) as high from bucket b) span
        cross join lateral @extschema@._ext_edges(span.low, span.high) e
        left join bucket b on b.middle >= e.from_ms and b.middle < e.to_ms
        group by e.from_ms, e.to_ms
    )
    select
        format('%s .. %s ms', b.from_ms::numeric, b.to_ms::numeric),
        b.count,
        round(100.0 * b.count / sum(b.count) over (), 1),
        rpad('', ceil(50.0 * b.count / max(b.count) over ())::integer, '#')
    from binned b
    order by b.from_ms
$$;

comment on function @extschema@.ext_latency_histogram(text, interval, text, text) is
    'Latencies over the time since then as a histogram to look at: ranges, how many, their share in percent, and a bar.';

create function @extschema@.ext_history(
    id text,
    since interval default '1 hour',
    step interval default '1 min',
    version text default null,
    instance_id text default null
)
returns table (
    at         timestamptz,
    requests   bigint,
    error_rate double precision,
    p50        double precision,
    p95        double precision,
    p99        double precision
)
language plpgsql volatile parallel safe rows 60
set search_path = pg_catalog, pg_temp
as $$
declare
    seconds constant numeric := extract(epoch from step);
    this_minute constant timestamptz := date_trunc('minute', clock_timestamp());
begin
    if seconds is null or seconds < 60 or mod(seconds, 60) <> 0 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('step is %s', coalesce(step::text, 'NULL')),
            hint = 'History is kept by the minute: pass whole minutes, such as ''1 min'' or ''1 hour''.';
    end if;
    if extract(epoch from since) / seconds > 100000 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('%s in steps of %s are more than 100000', since, step),
            hint = 'Pass a longer step or a shorter time.';
    end if;

    return query
    with minutes as materialized (
        select
            to_timestamp(floor(extract(epoch from m.minute) / seconds) * seconds) as step_at,
            m.requests,
            m.failures,
            m.latency
        from @extschema@._ext_minutes(ext_history.id, ext_history.since, ext_history.version, ext_history.instance_id) m
    ),
    steps as (
        select to_timestamp(s) as step_at
        from generate_series(
            floor(extract(epoch from least(this_minute, date_trunc('minute', this_minute - since) + interval '1 min')) / seconds)
                * seconds,
            floor(extract(epoch from this_minute) / seconds) * seconds,
            seconds) s
    ),
    summed as (
        select
            s.step_at,
            coalesce(sum(m.requests), 0)::bigint as total,
            sum(m.failures)::double precision as failed,
            @extschema@.hdr_merge(m.latency) as latency
        from steps s
        left join minutes m on m.step_at = s.step_at
        group by s.step_at
    )
    select
        s.step_at,
        s.total,
        s.failed / nullif(s.total, 0),
        @extschema@.hdr_quantile(s.latency, 0.5),
        @extschema@.hdr_quantile(s.latency, 0.95),
        @extschema@.hdr_quantile(s.latency, 0.99)
    from summed s
    order by s.step_at;
end;
$$;

comment on function @extschema@.ext_history(text, interval, interval, text, text) is
    'Requests, error rate and percentiles in ms over the time since then, a row for each step, also where nothing happened.';

create function @extschema@._ext_stats_reset(id text) returns bigint
language c volatile parallel safe
as 'MODULE_PATHNAME', '_ext_stats_reset';

comment on function @extschema@._ext_stats_reset(text) is
    'Resets the statistics of an extension, or (NULL) of all of them, at once; returns of how many targets.';

create function @extschema@.ext_stats_reset(id text default null) returns setof @extschema@.extension_health
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform @extschema@._ext_stats_reset(id);
    return query
    select h.*
    from @extschema@.extension_health h
    where ext_stats_reset.id is null or h.extension_id = ext_stats_reset.id
    order by h.extension_id;
end;
$$;

comment on function @extschema@.ext_stats_reset(text) is
    'Sets counts and latencies of an extension, or of all of them, back to nothing, at once and for everybody; breakers, ejections and older history stay. Returns the new state.';

-- requires:
--   53_history

-- What an operator keeps on the screen: one line per extension, for \watch; with ids of up to some
-- 20 characters it fits into 100 columns.

create view @extschema@.ext_top as
select
    h.extension_id::varchar(40) as extension,
    case when e.enabled then h.circuit_breaker_state::text else 'disabled' end as state,
    h.latency_samples as calls_5m,
    round((h.latency_samples
        / greatest(1, extract(epoch from clock_timestamp() - h.latency_samples_window_start))::numeric), 1) as per_s,
    round((100 * h.success_rate)::numeric, 1) as ok_pct,
    round(h.p50_latency_ms::numeric, 1) as p50_ms,
    round(h.p95_latency_ms::numeric, 1) as p95_ms,
    round(h.p99_latency_ms::numeric, 1) as p99_ms,
    (select sum(v.in_flight) from @extschema@._ext_live_versions(h.extension_id) v)::bigint as in_flight
from @extschema@.extension_health h
join @extschema@.extensions e on e.id = h.extension_id
order by
    array_position(array['open', 'half_open'], h.circuit_breaker_state::text),
    h.latency_samples desc,
    h.extension_id;

comment on view @extschema@.ext_top is
    'One line per extension for \watch: state, traffic and latency of the last 5 minutes; open breakers first, then the busiest.';
comment on column @extschema@.ext_top.extension is 'The extension (the first 40 characters of its id).';
comment on column @extschema@.ext_top.state is 'closed, half_open or open, as in extension_health; disabled.';
comment on column @extschema@.ext_top.calls_5m is 'Calls with a latency in the last 5 minutes.';
comment on column @extschema@.ext_top.per_s is 'The same per second.';
comment on column @extschema@.ext_top.ok_pct is 'Successes in percent of the outcomes of the last 5 minutes.';
comment on column @extschema@.ext_top.p50_ms is 'Median latency of the last 5 minutes, in ms.';
comment on column @extschema@.ext_top.p95_ms is '95th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.ext_top.p99_ms is '99th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.ext_top.in_flight is 'Calls decided and not yet reported.';

-- requires:
--   54_top

-- Documents: the registry as JSON, in and out. One document per extension, as in fixtures/extensions.
--
-- A document speaks for the keys that it has: what it leaves out stays as it is in an existing row and takes the default in
-- a new one. The lists versions and instances are whole where they are given: rows that they do not name are removed;
-- health: null removes the stored settings. Keys are the columns of the tables without the bookkeeping. What is wrong with a
-- document is error 22023 naming extension, key and value, and nothing of it is stored. (The small functions are plpgsql
-- because it keeps their plans: they run for every row.)

create view @extschema@._ext_documents as
select
    e.id,
    (to_jsonb(e) - array['created_at', 'updated_at', 'created_by', 'updated_by', 'uid'])
        || jsonb_build_object(
            'health', (
                select to_jsonb(s) - array['extension_id', 'updated_at']
                from @extschema@.extension_health_settings s
                where s.extension_id = e.id
            ),
            'versions', coalesce((
                select jsonb_agg(to_jsonb(v) - array['id', 'created_at', 'created_by'] order by v.version)
                from @extschema@.extension_versions v
                where v.id = e.id
            ), '[]'),
            'instances', coalesce((
                select jsonb_agg(
                    to_jsonb(i) - array['extension_id', 'last_health_check', 'created_at', 'updated_at'] order by i.instance_id)
                from @extschema@.extension_instances i
                where i.extension_id = e.id
            ), '[]')
        ) as document
from @extschema@.extensions e;

comment on view @extschema@._ext_documents is 'Every extension as a document.';

create function @extschema@.ext_export() returns jsonb
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'extensions', coalesce((select jsonb_agg(d.document order by d.id) from @extschema@._ext_documents d), '[]'),
        'policies', coalesce((
            select jsonb_agg(to_jsonb(p) - array['created_at', 'updated_at'] order by p.tenant_id, p.policy_id)
            from @extschema@.extension_policies p
        ), '[]'))
$$;

comment on function @extschema@.ext_export() is
    'The registry and the policies as one document, which ext_import reads.';

create function @extschema@._ext_document_keys(target regclass)
returns table (name text, json_type text, nullable boolean)
language plpgsql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select
        a.attname::text,
        case t.typcategory when 'B' then 'boolean' when 'N' then 'number' when 'S' then 'string' end,
        not a.attnotnull
    from pg_attribute a
    join pg_type t on t.oid = a.atttypid
    where a.attrelid = target
        and a.attnum > 0
        and not a.attisdropped
        and a.atttypid <> 'timestamptz'::regtype
        and a.attname not in ('uid', 'created_by', 'updated_by')
        -- The owner's id, which is given by where the document stands.
        and not exists (
            select from pg_constraint c where c.conrelid = target and c.contype = 'f' and a.attnum = any (c.conkey));
end;
$$;

comment on function @extschema@._ext_document_keys(regclass) is
    'The keys of a document about a row of this table, and the JSON type that each must have (NULL: any, jsonb''s own check decides).';

create function @extschema@._ext_document_problems(
    what text,
    document jsonb,
    target regclass,
    required text[],
    more jsonb default '{}'
) returns table (key text, problem text, hint text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    -- Once for all problems, and of a length that fits a message.
    place_name constant text := left(what, 300);
    needed constant text := format('%s must be there.', left(array_to_string(required, ', '), 1000));
    keys constant text := format('The keys are %s.', left((
        select string_agg(k.name, ', ' order by k.name)
        from (
            select d.name::text from @extschema@._ext_document_keys(target) d
            union all
            select m.key from jsonb_object_keys(more) m(key)
        ) k
    ), 1000));
begin
    return query
    with known as (
        select k.name, k.json_type from @extschema@._ext_document_keys(target) k
        union all
        select m.key, m.value from jsonb_each_text(more) m
    ),
    problems (place, key, problem, hint) as (
        select
            0,
            null,
            format('%s must be a JSON object, not %s', place_name, coalesce(left(document::text, 100), 'NULL')),
            'SELECT jsonb_pretty(ext_export()); shows the shape of documents.'
        where document is null or jsonb_typeof(document) <> 'object'
        union all
        select
            0,
            given.key,
            case
                when known.name is null then format('%s: unknown key %s', place_name, to_json(left(given.key, 100)))
                else format('%s: %s cannot be %s', place_name, given.key, left(given.value::text, 100))
            end,
            case
                when known.name is null then keys
                else format('Give it as JSON %s, or leave it out.', known.json_type)
            end
        from jsonb_each(case when jsonb_typeof(document) = 'object' then document end) given
        left join known on known.name = given.key
        where known.name is null
            or jsonb_typeof(given.value) not in ('null', known.json_type)
        union all
        select
            r.place::integer,
            r.name,
            format('%s: %s is missing', place_name, left(r.name, 100)),
            needed
        from unnest(required) with ordinality r(name, place)
        where jsonb_typeof(document) = 'object' and coalesce(document -> r.name, 'null') = 'null'
    )
    select p.key, p.problem, p.hint from problems p order by p.place, p.key collate "C";
end;
$$;

comment on function @extschema@._ext_document_problems(text, jsonb, regclass, text[], jsonb) is
    'Why document is not an object with known keys of the right types, the required ones among them; known are those of the table and of more (key -> type).';

create function @extschema@._ext_without_nulls(document jsonb, target regclass) returns jsonb
language plpgsql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return document - array(
        select k.name from @extschema@._ext_document_keys(target) k where not k.nullable and document -> k.name = 'null');
end;
$$;

comment on function @extschema@._ext_without_nulls(jsonb, regclass) is
    'The document without the nulls that its table cannot have: they are as if left out.';

create function @extschema@._ext_read_document(
    what text,
    document jsonb,
    target regclass,
    required text[],
    more jsonb default '{}'
) returns jsonb
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    wrong record;
begin
    select p.problem, p.hint into wrong
    from @extschema@._ext_document_problems(what, document, target, required, more) p
    limit 1;
    if found then
        raise exception using errcode = 'invalid_parameter_value', message = wrong.problem, hint = wrong.hint;
    end if;
    return coalesce(@extschema@._ext_without_nulls(document, target), document);
end;
$$;

comment on function @extschema@._ext_read_document(text, jsonb, regclass, text[], jsonb) is
    'Returns document without the nulls that its table cannot have. Raises 22023 if it has problems.';

create function @extschema@._ext_duplicates(what text, items jsonb, variadic keys text[])
returns table (index integer, problem text, hint text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with named as (
        select
            i.ordinality::integer - 1 as index,
            string_agg(to_json(left(i.value ->> k.key, 100))::text, ' ' order by k.ordinality) as shown,
            array_agg(i.value ->> k.key order by k.ordinality) as name
        from jsonb_array_elements(case when jsonb_typeof(items) = 'array' then items end) with ordinality i
        cross join unnest(keys) with ordinality k(key, ordinality)
        group by i.ordinality
    )
    select n.index, format('%s %s is there twice', what, n.shown), 'Each may be there once.'
    from named n
    where array_position(n.name, null) is null
        and exists (select from named earlier where earlier.name = n.name and earlier.index < n.index)
    order by n.index;
end;
$$;

comment on function @extschema@._ext_duplicates(text, jsonb, text[]) is
    'The items of a list that have the same keys as one before them.';

create function @extschema@._ext_check_unique(what text, items jsonb, variadic keys text[]) returns void
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    twice record;
begin
    select d.problem, d.hint into twice from @extschema@._ext_duplicates(what, items, variadic keys) d limit 1;
    if found then
        raise exception using errcode = 'invalid_parameter_value', message = twice.problem, hint = twice.hint;
    end if;
end;
$$;

comment on function @extschema@._ext_check_unique(text, jsonb, text[]) is
    'Raises 22023 if two items of a list have the same keys.';

create function @extschema@.ext_register(doc jsonb, expected_epoch bigint default null) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Documents need no advice on what an UPDATE does not do.
set client_min_messages = warning
as $$
declare
    name constant text := case when jsonb_typeof(doc -> 'id') = 'string' then doc ->> 'id' end;
    extension constant text := concat_ws(' ', 'extension', to_json(left(name, 100)));
    what text := extension;
    given jsonb;
    epoch bigint;
    item jsonb;
    gone text;
    reason text;
    detail text;
    hint text;
begin
    given := @extschema@._ext_read_document(extension, doc, '@extschema@.extensions', array['id', 'type', 'subject'],
        '{"health": "object", "versions": "array", "instances": "array"}');

    if expected_epoch is not null then
        -- Locked, so that nobody changes what is overwritten between this look and the end of the transaction.
        perform from @extschema@.extensions e where e.id = name for update;
        if doc ? 'health' then
            perform from @extschema@.extension_health_settings s where s.extension_id = name for update;
        end if;
        if doc ? 'versions' then
            perform from @extschema@.extension_versions v where v.id = name for update;
        end if;
        if doc ? 'instances' then
            perform from @extschema@.extension_instances i where i.extension_id = name for update;
        end if;
        epoch := @extschema@._ext_epoch(name);
        if epoch is distinct from expected_epoch then
            raise exception using
                errcode = 'serialization_failure',
                message = format('%s has changed: its epoch is %s, not %s',
                    extension, coalesce(epoch::text, 'none'), expected_epoch),
                hint = 'Read it again (ext_lookup shows the epoch), then register with the new epoch.';
        end if;
    end if;

    begin
        perform @extschema@._ext_put('@extschema@.extensions', jsonb_build_object('id', name),
            given - array['health', 'versions', 'instances']);

        what := extension || ' health';
        if jsonb_typeof(doc -> 'health') = 'object' then
            item := @extschema@._ext_read_document(what, doc -> 'health', '@extschema@.extension_health_settings', '{}');
            perform @extschema@._ext_put(
                '@extschema@.extension_health_settings', jsonb_build_object('extension_id', name), item);
        elsif doc ? 'health' and exists (
            select from @extschema@.extension_health_settings s where s.extension_id = name
        ) then
            delete from @extschema@.extension_health_settings s where s.extension_id = name;
        end if;

        if jsonb_typeof(doc -> 'versions') = 'array' then
            perform @extschema@._ext_check_unique(extension || ' version', doc -> 'versions', 'version');
            for gone in
                select v.version from @extschema@.extension_versions v
                where v.id = name and not doc -> 'versions' @> jsonb_build_array(jsonb_build_object('version', v.version))
            loop
                delete from @extschema@.extension_versions v where v.id = name and v.version = gone;
            end loop;
            for item in select i.value from jsonb_array_elements(doc -> 'versions') i loop
                what := concat_ws(' ', extension, 'version', left((item -> 'version')::text, 100));
                item := @extschema@._ext_read_document(what, item,
                    '@extschema@.extension_versions', array['version', 'subject']);
                if not exists (
                    select from @extschema@.extension_versions v where v.id = name and v.version = item ->> 'version'
                ) then
                    -- A new version has the extension's patience, unless it says otherwise.
                    item := (
                        select jsonb_build_object('timeout_ms', e.timeout_ms, 'retry', e.retry)
                        from @extschema@.extensions e
                        where e.id = name
                    ) || item;
                end if;
                perform @extschema@._ext_put('@extschema@.extension_versions',
                    jsonb_build_object('id', name, 'version', item -> 'version'), item);
            end loop;
        end if;

        if jsonb_typeof(doc -> 'instances') = 'array' then
            perform @extschema@._ext_check_unique(extension || ' instance', doc -> 'instances', 'instance_id');
            for gone in
                select i.instance_id from @extschema@.extension_instances i
                where i.extension_id = name
                    and not doc -> 'instances' @> jsonb_build_array(jsonb_build_object('instance_id', i.instance_id))
            loop
                delete from @extschema@.extension_instances i where i.extension_id = name and i.instance_id = gone;
            end loop;
            for item in select i.value from jsonb_array_elements(doc -> 'instances') i loop
                what := concat_ws(' ', extension, 'instance', left((item -> 'instance_id')::text, 100));
                item := @extschema@._ext_read_document(what, item,
                    '@extschema@.extension_instances', array['instance_id', 'subject']);
                perform @extschema@._ext_put('@extschema@.extension_instances',
                    jsonb_build_object('extension_id', name, 'instance_id', item -> 'instance_id'), item);
            end loop;
        end if;
    exception
        -- What the tables refuse, said of the document.
        when check_violation or invalid_text_representation or numeric_value_out_of_range or string_data_right_truncation then
            get stacked diagnostics
                reason = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
            raise exception using
                errcode = 'invalid_parameter_value',
                message = format('%s: %s', what, reason),
                detail = detail,
                hint = coalesce(nullif(hint, ''), '\d+ of the table shows what its columns take.');
    end;

    return @extschema@._ext_epoch(name);
end;
$$;

comment on function @extschema@.ext_register(jsonb, bigint) is
    'Registers one extension as its document says, versions, instances and health settings included; returns the epoch. With expected_epoch: only if it is that still, else error 40001.';

create function @extschema@.ext_import(doc jsonb, out extensions integer, out policies integer) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    item jsonb;
    what text;
    reason text;
    detail text;
    hint text;
begin
    perform @extschema@._ext_read_document('the document', doc, null, '{}', '{"extensions": "array", "policies": "array"}');
    extensions := 0;
    policies := 0;
    if jsonb_typeof(doc -> 'extensions') = 'array' then
        perform @extschema@._ext_check_unique('extension', doc -> 'extensions', 'id');
        for item in select i.value from jsonb_array_elements(doc -> 'extensions') i loop
            perform @extschema@.ext_register(item);
            extensions := extensions + 1;
        end loop;
    end if;
    if jsonb_typeof(doc -> 'policies') = 'array' then
        perform @extschema@._ext_check_unique('policy', doc -> 'policies', 'tenant_id', 'policy_id');
        for item in select i.value from jsonb_array_elements(doc -> 'policies') i loop
            what := concat_ws(' ', 'policy', left((item -> 'tenant_id')::text, 100), left((item -> 'policy_id')::text, 100));
            item := @extschema@._ext_read_document(what, item, '@extschema@.extension_policies',
                array['tenant_id', 'policy_id', 'document']);
            begin
                perform @extschema@._ext_put('@extschema@.extension_policies',
                    jsonb_build_object('tenant_id', item -> 'tenant_id', 'policy_id', item -> 'policy_id'), item);
            exception
                when check_violation or string_data_right_truncation then
                    get stacked diagnostics
                        reason = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
                    raise exception using
                        errcode = 'invalid_parameter_value',
                        message = format('%s: %s', what, reason),
                        detail = detail,
                        hint = coalesce(nullif(hint, ''), '\d+ of the table shows what its columns take.');
            end;
            policies := policies + 1;
        end loop;
    end if;
end;
$$;

comment on function @extschema@.ext_import(jsonb) is
    'Registers the extensions and writes the policies of a document as ext_export gives it, in one transaction; what it does not name stays. Returns how many there were.';

-- requires:
--   60_documents

-- Documents read without being stored: what each means for every row it speaks of. ext_validate and ext_diff (62_validate.sql)
-- show it.
--
-- No rule is told a second time here: keys are those of 60_documents.sql; defaults and CHECKs are read from the catalog and
-- evaluated for the row that would be stored. So what is found is what ext_register and ext_import would say. Nothing is
-- written and no more than ACCESS SHARE is locked: all of this works in a read-only transaction and on a standby. Not parallel
-- safe where a check that raises is caught: that takes a subtransaction.

create type @extschema@._ext_reviewed as (
    path         text,
    object       text,
    extension_id text,
    name         text,
    -- The row as it is and as it would be, as documents have it; NULL: none.
    had          jsonb,
    would        jsonb,
    -- Or why it cannot be.
    problem      text,
    hint         text
);

comment on type @extschema@._ext_reviewed is 'What a document means for one row, or one problem with it.';

create function @extschema@._ext_rules_problems(rules jsonb) returns table (key text, problem text, hint text)
language c immutable strict parallel safe rows 1
as 'MODULE_PATHNAME', '_ext_rules_problems';

comment on function @extschema@._ext_rules_problems(jsonb) is
    'All for which _ext_check_rules would refuse rules, by their keys.';

create function @extschema@._ext_policy_problems(document jsonb) returns table (path text, problem text, hint text)
language c immutable strict parallel safe rows 1
as 'MODULE_PATHNAME', '_ext_policy_problems';

comment on function @extschema@._ext_policy_problems(jsonb) is
    'All for which _ext_check_policy would refuse a document, one for each item at most, by their places.';

create function @extschema@._ext_path(place text, key text) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return concat_ws('.', nullif(place, ''), case when key ~ '^[A-Za-z_]\w*$' then left(key, 100) else '"' || left(key, 100) || '"' end);
end;
$$;

comment on function @extschema@._ext_path(text, text) is 'Where a key of the object at place stands; place itself without a key.';

create function @extschema@._ext_would_be(target regclass, had jsonb, given jsonb) returns jsonb
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    expressions text;
    defaults jsonb;
    would jsonb;
begin
    select string_agg(format('%L, %s', k.name, pg_get_expr(d.adbin, d.adrelid)), ', ') into expressions
    from @extschema@._ext_document_keys(target) k
    join pg_attribute a on a.attrelid = target and a.attname = k.name
    join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum;
    execute format('select jsonb_build_object(%s)', expressions) into defaults;
    execute format('select to_jsonb(r) from jsonb_populate_record(null::%s, $1) r', target)
    into would
    using coalesce(had, defaults) || given;

    return (
        select jsonb_object_agg(
            k.name,
            case
                -- Triggers fill NULLs; but in the settings NULL switches a rule off.
                when would -> k.name = 'null' and target <> '@extschema@.extension_health_settings'::regclass
                    then coalesce(defaults -> k.name, 'null')
                else would -> k.name
            end)
        from @extschema@._ext_document_keys(target) k
    );
end;
$$;

comment on function @extschema@._ext_would_be(regclass, jsonb, jsonb) is
    'The row that _ext_put would make of had (NULL: none) and given, as documents have it.';

create function @extschema@._ext_row_problems(what text, target regclass, had jsonb, given jsonb)
returns table (path text, problem text, hint text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    good jsonb := given;
    row_type constant text := format('jsonb_populate_record(null::%s, $1)', target);
    would jsonb;
    checks text;
    passes boolean;
    item record;
begin
    -- All at once, which is enough for a good row.
    begin
        would := @extschema@._ext_would_be(target, had, given);
        select string_agg(format('(%s) is not false', pg_get_expr(c.conbin, c.conrelid)), ' and ') into checks
        from pg_constraint c
        where c.conrelid = target and c.contype = 'c';
        execute format('select %s from %s', coalesce(checks, 'true'), row_type) into passes using would;
        if passes then
            return;
        end if;
    exception
        when check_violation or invalid_text_representation or numeric_value_out_of_range or string_data_right_truncation then
            null;
    end;

    for item in
        select a.attname
        from pg_attribute a
        where a.attrelid = target and a.attnum > 0 and given ? a.attname
        order by a.attnum
    loop
        begin
            perform @extschema@._ext_would_be(target, had, jsonb_build_object(item.attname, given -> item.attname));
        exception
            when invalid_text_representation or numeric_value_out_of_range or string_data_right_truncation then
                get stacked diagnostics problem = message_text, hint = pg_exception_hint;
                path := item.attname;
                problem := format('%s: %s', what, problem);
                hint := coalesce(nullif(hint, ''), '\d+ of the table shows what its columns take.');
                return next;
                good := good - path;
        end;
    end loop;

    would := @extschema@._ext_would_be(target, had, good);
    for item in
        select
            c.conname,
            pg_get_expr(c.conbin, c.conrelid) as condition,
            (
                select a.attname from pg_attribute a
                where a.attrelid = target and a.attnum = any (c.conkey)
                order by given ? a.attname desc, a.attnum
                limit 1
            ) as attname
        from pg_constraint c
        where c.conrelid = target and c.contype = 'c'
        -- The order in which Postgres checks them.
        order by c.conname
    loop
        begin
            execute format('select (%s) is not false from %s', item.condition, row_type) into passes using would;
            problem := format('new row for relation %s violates check constraint %s',
                to_json((select c.relname from pg_class c where c.oid = target)), to_json(item.conname));
            hint := null;
        exception
            when check_violation then
                get stacked diagnostics problem = message_text, hint = pg_exception_hint;
                passes := false;
        end;
        if passes then
            continue;
        end if;
        -- A CHECK tells the first problem; within these there may be more.
        return query
        select d.path, format('%s: %s', what, d.problem), d.hint
        from (
            select @extschema@._ext_path(item.attname, nullif(p.key, '')), p.problem, p.hint
            from @extschema@._ext_rules_problems(would -> 'routing_rules') p
            where (target, item.attname) = ('@extschema@.extension_versions'::regclass, 'routing_rules')
            union all
            select concat_ws('.', item.attname, nullif(p.path, '')), p.problem, p.hint
            from @extschema@._ext_policy_problems(would -> 'document') p
            where (target, item.attname) = ('@extschema@.extension_policies'::regclass, 'document')
        ) d(path, problem, hint);
        if not found then
            path := item.attname;
            problem := format('%s: %s', what, problem);
            hint := coalesce(nullif(hint, ''), '\d+ of the table shows what its columns take.');
            return next;
        end if;
    end loop;
end;
$$;

comment on function @extschema@._ext_row_problems(text, regclass, jsonb, jsonb) is
    'Why the table would refuse what _ext_put makes of had and given: values that do not fit their columns, and CHECKs.';

create function @extschema@._ext_review_row(
    item @extschema@._ext_reviewed,
    what text,
    target regclass,
    required text[],
    given jsonb,
    more jsonb default '{}',
    inherited jsonb default '{}'
) returns setof @extschema@._ext_reviewed
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    known jsonb := given;
    -- (Records, for whose fields pgspot knows assignments.)
    wrong record := item;
    good record := item;
    found_one record;
    sound boolean := true;
begin
    wrong.had := null;
    for found_one in select p.* from @extschema@._ext_document_problems(what, given, target, required, more) p loop
        sound := false;
        wrong.path := @extschema@._ext_path(item.path, found_one.key);
        wrong.problem := found_one.problem;
        wrong.hint := found_one.hint;
        return next wrong;
        if found_one.key is null then
            return;
        end if;
        known := known - found_one.key;
    end loop;

    known := @extschema@._ext_without_nulls(known - array(select jsonb_object_keys(more)), target);
    if item.had is null then
        known := inherited || known;
    end if;
    for found_one in select p.* from @extschema@._ext_row_problems(what, target, item.had, known) p loop
        sound := false;
        wrong.path := concat_ws('.', nullif(item.path, ''), found_one.path);
        wrong.problem := found_one.problem;
        wrong.hint := found_one.hint;
        return next wrong;
    end loop;

    if sound then
        good.would := @extschema@._ext_would_be(target, item.had, known);
        if item.had is not null then
            good.had := @extschema@._ext_would_be(target, item.had, '{}');
        end if;
        return next good;
    end if;
end;
$$;

comment on function @extschema@._ext_review_row(@extschema@._ext_reviewed, text, regclass, text[], jsonb, jsonb, jsonb) is
    'All problems with what a document says of one row, or else the row that it would be.';

create function @extschema@._ext_review_extension(place text, doc jsonb) returns setof @extschema@._ext_reviewed
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    owner constant text := case when jsonb_typeof(doc -> 'id') = 'string' then doc ->> 'id' end;
    what constant text := concat_ws(' ', 'extension', to_json(left(owner, 100)));
    item record;
    inherited jsonb := '{}';
    list record;
    stored jsonb;
begin
    for item in
        select r.*
        from @extschema@._ext_review_row(
            row (place, 'extension', owner, null, (select to_jsonb(e) from @extschema@.extensions e where e.id = owner),
                null, null, null)::@extschema@._ext_reviewed,
            what, '@extschema@.extensions', array['id', 'type', 'subject'], doc,
            '{"health": "object", "versions": "array", "instances": "array"}') r
    loop
        return next item;
        if item.would is not null then
            -- A new version has the extension's patience, unless it says otherwise.
            inherited := jsonb_build_object('timeout_ms', item.would -> 'timeout_ms', 'retry', item.would -> 'retry');
        end if;
    end loop;
    if doc is null or jsonb_typeof(doc) <> 'object' then
        return;
    end if;

    item := row (
        @extschema@._ext_path(place, 'health'), 'health', owner, null,
        (select to_jsonb(s) from @extschema@.extension_health_settings s where s.extension_id = owner), null, null, null
    )::@extschema@._ext_reviewed;
    if jsonb_typeof(doc -> 'health') = 'object' then
        return query
        select r.*
        from @extschema@._ext_review_row(
            item, what || ' health', '@extschema@.extension_health_settings', '{}', doc -> 'health') r;
    elsif jsonb_typeof(doc -> 'health') = 'null' and item.had is not null then
        item.had := @extschema@._ext_would_be('@extschema@.extension_health_settings', item.had, '{}');
        return next item;
    end if;

    for list in
        select l.*, format('%s %s', what, l.object) as what
        from (
            values
                ('versions', 'version', 'version', '@extschema@.extension_versions'::regclass, inherited),
                ('instances', 'instance', 'instance_id', '@extschema@.extension_instances'::regclass, '{}')
        ) l(name, object, key, target, inherited)
        where jsonb_typeof(doc -> l.name) = 'array'
    loop
        return query
        select
            @extschema@._ext_path(format('%s[%s]', @extschema@._ext_path(place, list.name), d.index), list.key),
            list.object, owner, null, null::jsonb, null::jsonb, d.problem, d.hint
        from @extschema@._ext_duplicates(list.what, doc -> list.name, list.key) d;

        select coalesce(jsonb_object_agg(s.name, s.had), '{}') into stored
        from (
            select v.version, to_jsonb(v) from @extschema@.extension_versions v
            where v.id = owner and list.object = 'version'
            union all
            select i.instance_id, to_jsonb(i) from @extschema@.extension_instances i
            where i.extension_id = owner and list.object = 'instance'
        ) s(name, had);

        -- What the list does not name is deleted.
        return query
        select
            @extschema@._ext_path(place, list.name), list.object, owner, s.key,
            @extschema@._ext_would_be(list.target, s.value, '{}'), null::jsonb, null, null
        from jsonb_each(stored) s
        where not doc -> list.name @> jsonb_build_array(jsonb_build_object(list.key, s.key))
        order by s.key collate "C";

        return query
        select r.*
        from jsonb_array_elements(doc -> list.name) with ordinality i
        cross join lateral @extschema@._ext_review_row(
            row (
                format('%s[%s]', @extschema@._ext_path(place, list.name), i.ordinality - 1), list.object, owner,
                i.value ->> list.key, stored -> (i.value ->> list.key), null, null, null
            )::@extschema@._ext_reviewed,
            concat_ws(' ', list.what, left((i.value -> list.key)::text, 100)),
            list.target, array[list.key, 'subject'], i.value, '{}', list.inherited) r;
    end loop;
end;
$$;

comment on function @extschema@._ext_review_extension(text, jsonb) is
    'What a document of one extension, as ext_register takes it, means for every row it speaks of.';

create function @extschema@._ext_review(doc jsonb) returns setof @extschema@._ext_reviewed
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    given jsonb;
begin
    if doc is null or jsonb_typeof(doc) <> 'object' or not doc ?| array['extensions', 'policies'] then
        return query select r.* from @extschema@._ext_review_extension('', doc) r;
        return;
    end if;

    return query
    select p.key, 'document', null, null, null::jsonb, null::jsonb, p.problem, p.hint
    from @extschema@._ext_document_problems(
        'the document', doc, null, '{}', '{"extensions": "array", "policies": "array"}') p;

    given := case when jsonb_typeof(doc -> 'extensions') = 'array' then doc -> 'extensions' else '[]' end;
    return query
    select format('extensions[%s].id', d.index), 'extension', null, null, null::jsonb, null::jsonb, d.problem, d.hint
    from @extschema@._ext_duplicates('extension', given, 'id') d;
    return query
    select r.*
    from jsonb_array_elements(given) with ordinality i
    cross join lateral @extschema@._ext_review_extension(format('extensions[%s]', i.ordinality - 1), i.value) r;

    given := case when jsonb_typeof(doc -> 'policies') = 'array' then doc -> 'policies' else '[]' end;
    return query
    select format('policies[%s].policy_id', d.index), 'policy', null, null, null::jsonb, null::jsonb, d.problem, d.hint
    from @extschema@._ext_duplicates('policy', given, 'tenant_id', 'policy_id') d;
    return query
    select r.*
    from jsonb_array_elements(given) with ordinality i
    cross join lateral @extschema@._ext_review_row(
        row (
            format('policies[%s]', i.ordinality - 1), 'policy', null,
            (i.value ->> 'tenant_id') || '/' || (i.value ->> 'policy_id'),
            (
                select to_jsonb(p) from @extschema@.extension_policies p
                where (p.tenant_id, p.policy_id) = (i.value ->> 'tenant_id', i.value ->> 'policy_id')
            ),
            null, null, null
        )::@extschema@._ext_reviewed,
        concat_ws(' ', 'policy', left((i.value -> 'tenant_id')::text, 100), left((i.value -> 'policy_id')::text, 100)),
        '@extschema@.extension_policies', array['tenant_id', 'policy_id', 'document'], i.value) r;
end;
$$;

comment on function @extschema@._ext_review(jsonb) is
    'What a document means for every row it speaks of: of one extension, as ext_register takes it, or, where it has the key extensions or policies, a whole one, as ext_import does.';

-- requires:
--   61_review

-- Before a document is registered: what is wrong with it (ext_validate), and what it would change (ext_diff).

create function @extschema@._ext_doubts(reviewed @extschema@._ext_reviewed[])
returns table (place bigint, path text, problem text, hint text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with item as (
        select r.*, format('extension %s', to_json(r.extension_id)) as extension
        from unnest(reviewed) with ordinality r(path, object, extension_id, name, had, would, problem, hint, place)
    ),
    sound as (
        select i.* from item i where i.would is not null
    ),
    extension as (
        select i.extension_id as id, i.would ->> 'type' as type, i.would ->> 'version' as version
        from item i
        where i.object = 'extension' and i.extension_id is not null
        union all
        select e.id, e.type, e.version
        from @extschema@.extensions e
        where not exists (select from item i where i.object = 'extension' and i.extension_id = e.id)
    ),
    version as (
        select e.id, e.version as name from extension e
        union
        select i.extension_id, i.name from item i where i.object = 'version' and (i.would is not null or i.problem is not null)
        union
        select v.id, v.version
        from @extschema@.extension_versions v
        where not exists (
            select from item i where i.object = 'version' and i.extension_id = v.id and i.name = v.version and i.would is null
        )
    ),
    stage (name, key, type) as (
        values
            ('pre', 'id', 'pre'),
            ('validators', 'id', 'validator'),
            ('providers', 'name', 'provider'),
            ('fallbacks', 'to', 'provider'),
            ('post', 'id', 'post')
    ),
    mention as (
        select
            p.place,
            case
                when jsonb_typeof(i.value) = 'string' then format('%s.document.%s[%s]', p.path, s.name, i.ordinality - 1)
                else format('%s.document.%s[%s].%s', p.path, s.name, i.ordinality - 1, s.key)
            end as path,
            format('policy %s %s: %s', p.would -> 'tenant_id', p.would -> 'policy_id', s.name) as stage,
            s.type,
            case when jsonb_typeof(i.value) = 'string' then i.value #>> '{}' else i.value ->> s.key end as id
        from sound p
        cross join stage s
        cross join jsonb_array_elements(
            case when jsonb_typeof(p.would #> array['document', s.name]) = 'array' then p.would #> array['document', s.name] end
        ) with ordinality i
        where p.object = 'policy' and p.would -> 'enabled' = 'true'
    )
    select
        v.place,
        @extschema@._ext_path(v.path || '.routing_rules', r.key),
        format('%s version %s: no request can reach it: the rule for %s is []', v.extension, to_json(v.name), to_json(left(r.key, 100))),
        'Give it "enabled": false if that is meant, else list the values that the rule shall match.'
    from sound v
    join extension e on e.id = v.extension_id
    cross join jsonb_each(v.would -> 'routing_rules') r
    -- (A row of the extension's own version lends its breaker to it, and need not be reached.)
    where v.object = 'version' and v.would -> 'enabled' = 'true' and v.name <> e.version and r.value = '[]'
    union all
    select
        v.place,
        v.path || '.rollout_percent',
        format('%s version %s: no request can reach it: its share is 0', v.extension, to_json(v.name)),
        'Give it "enabled": false if that is meant, else a rollout_percent above 0.'
    from sound v
    join extension e on e.id = v.extension_id
    where v.object = 'version' and v.would -> 'enabled' = 'true' and v.name <> e.version and v.would -> 'rollout_percent' = '0'
    union all
    select
        i.place,
        i.path || '.version',
        format('%s instance %s: no call can reach it: there is no version %s', i.extension, to_json(i.name), i.would -> 'version'),
        format('Use one of %s, or null for the version with the same subject.',
            (select string_agg(v.name, ', ' order by v.name) from version v where v.id = i.extension_id))
    from sound i
    where i.object = 'instance'
        and i.would -> 'enabled' = 'true'
        and i.would ->> 'version' is not null
        and not exists (select from version v where v.id = i.extension_id and v.name = i.would ->> 'version')
    union all
    select
        e.place,
        @extschema@._ext_path(e.path, 'metadata') || '.allowed_tenants',
        format('%s: every call is refused: allowed_tenants is %s', e.extension, left((e.would #> '{metadata,allowed_tenants}')::text, 100)),
        'Give it "enabled": false if that is meant, else list the tenants as strings; without allowed_tenants everybody may call.'
    from sound e
    where e.object = 'extension'
        and e.would -> 'enabled' = 'true'
        and e.would -> 'metadata' ? 'allowed_tenants'
        and (
            e.would #> '{metadata,allowed_tenants}' = '[]'
            or jsonb_typeof(e.would #> '{metadata,allowed_tenants}') <> 'array'
            or jsonb_path_exists(e.would, 'strict $.metadata.allowed_tenants[*] ? (@.type() != "string")', '{}', true)
        )
    union all
    select
        m.place,
        m.path,
        case
            when e.id is null then format('%s calls %s, which is not registered', m.stage, to_json(m.id))
            else format('%s calls %s, which is of type %s', m.stage, to_json(m.id), e.type)
        end,
        case
            when e.id is null then 'Register it, here or beforehand, or correct the name.'
            else format('An extension of type %s belongs there.', m.type)
        end
    from mention m
    left join extension e on e.id = m.id
    where e.id is null or e.type <> m.type;
end;
$$;

comment on function @extschema@._ext_doubts(@extschema@._ext_reviewed[]) is
    'What a sound document surely does not mean; place is that of the reviewed item.';

create function @extschema@.ext_validate(doc jsonb)
returns table (path text, severity text, problem text, hint text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    reviewed constant @extschema@._ext_reviewed[] := array(select r from @extschema@._ext_review(doc) r);
begin
    return query
    select f.path, f.severity, f.problem, f.hint
    from (
        select r.place, r.path, 'error' as severity, r.problem, r.hint
        from unnest(reviewed) with ordinality r(path, object, extension_id, name, had, would, problem, hint, place)
        where r.problem is not null
        union all
        select d.place, d.path, 'warning', d.problem, d.hint
        from @extschema@._ext_doubts(reviewed) d
    ) f
    order by f.place, f.path;
end;
$$;

comment on function @extschema@.ext_validate(jsonb) is
    'All that is wrong with a document for ext_register, or, where it has the key extensions or policies, for ext_import: error, it would be refused; warning, it would be stored but is surely not meant. No row: nothing.';

create function @extschema@.ext_diff(doc jsonb)
returns table (action text, object text, extension_id text, name text, key text, old jsonb, new jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    item @extschema@._ext_reviewed;
begin
    for item in select r.* from @extschema@._ext_review(doc) r loop
        if item.problem is not null then
            raise exception using
                errcode = 'invalid_parameter_value', message = item.problem, hint = item.hint;
        end if;
        object := item.object;
        extension_id := item.extension_id;
        name := item.name;
        if item.had is null or item.would is null then
            action := case when item.had is null then 'create' else 'delete' end;
            key := null;
            old := item.had;
            new := item.would;
            return next;
            continue;
        end if;
        action := 'update';
        for key, old, new in
            select w.key, item.had -> w.key, w.value
            from jsonb_each(item.would) w
            where w.value is distinct from item.had -> w.key
            order by w.key collate "C"
        loop
            return next;
        end loop;
    end loop;
end;
$$;

comment on function @extschema@.ext_diff(jsonb) is
    'What ext_register, or, where the document has the key extensions or policies, ext_import would change: a row for every key of an updated row, one for every created or deleted row. An error as theirs if the document is not valid.';

-- requires:
--   62_validate

-- Which policies name an extension: what to ask before it is disabled or deleted.

create function @extschema@.ext_policy_uses(id text)
returns table (
    tenant_id varchar(255),
    policy_id varchar(255),
    enabled   boolean,
    stage     text,
    index     integer,
    mode      text,
    on_fail   text,
    required  boolean,
    condition jsonb
)
language sql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    with stage (name, key, number) as (
        values ('pre', 'id', 1), ('validators', 'id', 2), ('providers', 'name', 3), ('fallbacks', 'to', 4), ('post', 'id', 5)
    )
    select
        p.tenant_id,
        p.policy_id,
        p.enabled,
        s.name,
        i.ordinality::integer - 1,
        o.mode,
        o.on_fail,
        -- Providers and their fallbacks stand in for each other; without the last of them no request is answered.
        case
            when o.mode is not null then o.mode = 'required'
            when o.on_fail is not null then o.on_fail = 'block'
            when s.name = 'providers' then jsonb_array_length(p.document -> 'providers') = 1
                and coalesce(jsonb_array_length(p.document -> 'fallbacks'), 0) = 0
            else false
        end,
        i.value -> 'when'
    from @extschema@.extension_policies p
    cross join stage s
    cross join lateral jsonb_array_elements(
        case when jsonb_typeof(p.document -> s.name) = 'array' then p.document -> s.name end
    ) with ordinality i
    cross join lateral (
        select
            case when s.name in ('pre', 'post') then coalesce(i.value ->> 'mode', 'optional') end as mode,
            case when s.name = 'validators' then coalesce(i.value ->> 'on_fail', 'block') end as on_fail
    ) o
    where case when jsonb_typeof(i.value) = 'string' then i.value #>> '{}' else i.value ->> s.key end = ext_policy_uses.id
    order by p.tenant_id, p.policy_id, s.number, i.ordinality
$$;

comment on function @extschema@.ext_policy_uses(text) is
    'Where policies name an extension, disabled policies too: stage and index in it, mode (pre, post) and on_fail (validators) as they hold, whether a request fails without it, and its condition. No row if none does.';

-- requires:
--   63_uses

-- The audit log read by people: what has changed, and how a registration stood at some time.

create view @extschema@.extension_changes as
select
    a.changed_at,
    a.extension_id,
    a.action,
    case a.table_name
        when 'extensions' then 'extension'
        when 'extension_versions' then 'version ' || (coalesce(a.new_values, a.old_values) ->> 'version')
        when 'extension_instances' then 'instance ' || (coalesce(a.new_values, a.old_values) ->> 'instance_id')
        when 'extension_health_settings' then 'settings'
        else a.table_name
    end as what,
    case when a.old_values is not null and a.new_values is not null then (
        select string_agg(format('%s: %s -> %s', k.name, coalesce(a.old_values ->> k.name, 'null'), coalesce(a.new_values ->> k.name, 'null')),
            ', ' order by k.name)
        from (
            select o.key as name from jsonb_each(a.old_values) o
            union
            select n.key from jsonb_each(a.new_values) n
        ) k
        where a.old_values -> k.name is distinct from a.new_values -> k.name and k.name not in ('updated_at', 'updated_by')
    ) end as changes,
    a.changed_by,
    nullif(a.changed_role, a.changed_by) as as_role,
    a.application_name,
    a.transaction_id
from @extschema@.extension_audit_log a;

comment on view @extschema@.extension_changes is
    'extension_audit_log as one reads it: what was changed, from what to what, by whom. Order it by changed_at.';
comment on column @extschema@.extension_changes.changed_at is 'When, by the clock.';
comment on column @extschema@.extension_changes.extension_id is 'The extension; after a rename the new id.';
comment on column @extschema@.extension_changes.action is 'create, update, delete, enable or disable.';
comment on column @extschema@.extension_changes.what is 'The extension itself, one of its versions or instances, or its settings.';
comment on column @extschema@.extension_changes.changes is 'Column: old -> new, for updates.';
comment on column @extschema@.extension_changes.changed_by is 'The session user.';
comment on column @extschema@.extension_changes.as_role is 'The role set by SET ROLE, if another.';
comment on column @extschema@.extension_changes.application_name is 'application_name of the session.';
comment on column @extschema@.extension_changes.transaction_id is 'The transaction.';

-- The rows of one table that belonged to an extension then. The last entry until then says how a row was; where the log
-- begins later (rows that came by a dump without their log), the first entry after it does; else the row has not changed.
create function @extschema@._ext_rows_at(target regclass, owner_column text, key_column text, id text, at timestamptz)
returns setof jsonb
language plpgsql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return query execute format(
        $query$
            with entry as (
                select a.changed_at, a.old_values, a.new_values,
                    -- A rename ends the row under its old id.
                    case when a.old_values ->> %1$L = $1 then a.old_values end as was,
                    case when a.new_values ->> %1$L = $1 then a.new_values end as became
                from @extschema@.extension_audit_log a
                where a.table_name = $3 and (a.extension_id = $1 or a.old_values ->> %1$L = $1)
            ),
            keyed as (
                select coalesce(e.became, e.was) ->> %2$L as key, e.changed_at, e.was, e.became from entry e
                where e.was is null or e.became is null or e.was ->> %2$L = e.became ->> %2$L
                union all
                select e.was ->> %2$L, e.changed_at, e.was, null from entry e where e.was ->> %2$L <> e.became ->> %2$L
                union all
                select e.became ->> %2$L, e.changed_at, null, e.became from entry e where e.was ->> %2$L <> e.became ->> %2$L
            ),
            before as (
                select distinct on (k.key) k.key, k.became as found from keyed k where k.changed_at <= $2
                order by k.key, k.changed_at desc
            ),
            after as (
                select distinct on (k.key) k.key, k.was as found from keyed k
                where k.changed_at > $2 and not exists (select from before b where b.key = k.key)
                order by k.key, k.changed_at
            )
            select f.found from (
                select b.found from before b
                union all
                select f.found from after f
                union all
                select to_jsonb(t) from %3$s t
                where t.%1$I = $1 and not exists (select from keyed k where k.key = to_jsonb(t) ->> %2$L)
                    and coalesce((to_jsonb(t) ->> 'created_at')::timestamptz, '-infinity') <= $2
            ) f
            where f.found is not null
            order by f.found ->> %2$L
        $query$,
        owner_column, key_column, target)
    using id, at, (select c.relname from pg_class c where c.oid = target);
end;
$$;

comment on function @extschema@._ext_rows_at(regclass, text, text, text, timestamptz) is
    'The rows of a registry table that belonged to an extension at that time, from the audit log.';

create function @extschema@.ext_restore(id text, at timestamptz) returns jsonb
language plpgsql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    extension jsonb;
    -- What is bookkeeping, or the owner's id, has no place in a document (see _ext_document_keys).
    left_out constant text[] := array['created_at', 'updated_at', 'created_by', 'updated_by', 'uid', 'last_health_check'];
    first_known timestamptz;
begin
    select r.value into extension
    from @extschema@._ext_rows_at('@extschema@.extensions', 'id', 'id', id, at) r(value);
    if extension is null then
        select min(a.changed_at) into first_known
        from @extschema@.extension_audit_log a
        where a.extension_id = ext_restore.id and a.table_name = 'extensions';
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s was not registered at %s', to_json(left(id, 300)), at),
            hint = case
                when first_known is null then 'extension_changes lists what has ever been registered.'
                else format('The first entry about it is of %s; select * from extension_changes where extension_id = %L.',
                    first_known, left(id, 300))
            end;
    end if;
    return (extension - left_out) || jsonb_build_object(
        'health', (
            select s.value - left_out - 'extension_id'
            from @extschema@._ext_rows_at('@extschema@.extension_health_settings', 'extension_id', 'extension_id', id, at) s(value)
        ),
        'versions', coalesce((
            select jsonb_agg(v.value - left_out - 'id')
            from @extschema@._ext_rows_at('@extschema@.extension_versions', 'id', 'version', id, at) v(value)
        ), '[]'),
        'instances', coalesce((
            select jsonb_agg(i.value - left_out - 'extension_id')
            from @extschema@._ext_rows_at('@extschema@.extension_instances', 'extension_id', 'instance_id', id, at) i(value)
        ), '[]'));
end;
$$;

comment on function @extschema@.ext_restore(text, timestamptz) is
    'The registration as it stood then, from the audit log, as a document; nothing is changed. ext_diff shows what it would change, ext_register puts it back.';

-- requires:
--   64_restore

-- Status: is the registry itself well?

create function @extschema@._ext_status(
    out worker_pid integer,
    out worker_last_flush timestamptz,
    out flush_lag_ms double precision,
    out targets_used integer,
    out targets_total integer,
    out in_flight_used integer,
    out in_flight_total integer,
    out stale_reports bigint,
    out untracked_targets bigint,
    out lost_events bigint,
    out library_version text,
    out is_standby boolean,
    out ticketless_decisions bigint
) returns record
language c volatile parallel safe
as 'MODULE_PATHNAME', '_ext_status';

comment on function @extschema@._ext_status() is 'State of the worker and of shared memory.';

create function @extschema@._ext_triggers() returns table (relation regclass, name name, always boolean)
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select t.relation, t.name, t.name like '!%'
    from (
        values
            ('@extschema@.extensions'::regclass, '!invalidate'::name),
            ('@extschema@.extensions', '!invalidate_truncate'),
            ('@extschema@.extensions', 'advise'),
            ('@extschema@.extensions', 'audit'),
            ('@extschema@.extensions', 'audit_truncate'),
            ('@extschema@.extensions', 'fill'),
            ('@extschema@.extensions', 'rename'),
            ('@extschema@.extension_versions', '!invalidate'),
            ('@extschema@.extension_versions', '!invalidate_truncate'),
            ('@extschema@.extension_versions', 'audit'),
            ('@extschema@.extension_versions', 'audit_truncate'),
            ('@extschema@.extension_versions', 'fill'),
            ('@extschema@.extension_instances', '!invalidate'),
            ('@extschema@.extension_instances', '!invalidate_truncate'),
            ('@extschema@.extension_instances', 'audit'),
            ('@extschema@.extension_instances', 'audit_truncate'),
            ('@extschema@.extension_instances', 'discovered_deleted'),
            ('@extschema@.extension_instances', 'discovered_inserted'),
            ('@extschema@.extension_instances', 'fill'),
            ('@extschema@.extension_health_settings', '!invalidate'),
            ('@extschema@.extension_health_settings', '!invalidate_truncate'),
            ('@extschema@.extension_health_settings', 'audit'),
            ('@extschema@.extension_health_settings', 'audit_truncate'),
            ('@extschema@.extension_health_settings', 'fill'),
            ('@extschema@.extension_breaker_resets', '!invalidate'),
            ('@extschema@.extension_breaker_resets', '!invalidate_truncate'),
            ('@extschema@.extension_policies', 'fill'),
            ('@extschema@.extension_health', 'measured'),
            ('@extschema@.extension_health', 'update_settings'),
            ('@extschema@.extension_health', 'refuse'),
            ('@extschema@.extension_registry_grants', 'apply')
    ) t(relation, name)
$$;

comment on function @extschema@._ext_triggers() is
    'The triggers that the extension brings, and whether they must be ENABLE ALWAYS.';

create function @extschema@._ext_triggers_amiss() returns table (relation regclass, name name, always boolean, enabled text)
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select
        ours.relation,
        ours.name,
        ours.always,
        case t.tgenabled
            when 'O' then 'origin'
            when 'R' then 'replica'
            when 'D' then 'disabled'
            else 'missing'
        end
    from @extschema@._ext_triggers() ours
    left join pg_trigger t on t.tgrelid = ours.relation and t.tgname = ours.name
    where t.tgenabled is null
        or t.tgenabled not in ('A', case when ours.always then 'A' else 'O' end)
$$;

comment on function @extschema@._ext_triggers_amiss() is
    'Those of the extension''s triggers that are not as they must be.';

create function @extschema@.ext_registry_status(
    out total bigint,
    out extensions_by_type jsonb,
    out last_change timestamptz,
    out worker_alive boolean,
    out worker_pid integer,
    out worker_last_flush timestamptz,
    out flush_lag_ms double precision,
    out targets_used integer,
    out targets_total integer,
    out in_flight_used integer,
    out in_flight_total integer,
    out stale_reports bigint,
    out untracked_targets bigint,
    out lost_events bigint,
    out triggers_intact boolean,
    out version text,
    out library_version text,
    out is_standby boolean,
    out ticketless_decisions bigint
) returns record
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select
        (select count(*) from @extschema@.extensions),
        (
            select coalesce(jsonb_object_agg(t.type, t.number), '{}')
            from (select e.type, count(*) as number from @extschema@.extensions e group by e.type) t
        ),
        (select max(a.changed_at) from @extschema@.extension_audit_log a),
        coalesce(s.worker_pid > 0, false),
        nullif(s.worker_pid, 0),
        s.worker_last_flush,
        s.flush_lag_ms,
        s.targets_used,
        s.targets_total,
        s.in_flight_used,
        s.in_flight_total,
        s.stale_reports,
        s.untracked_targets,
        s.lost_events,
        not exists (select from @extschema@._ext_triggers_amiss()),
        (select x.extversion from pg_extension x where x.extname = 'ext_registry'),
        s.library_version,
        s.is_standby,
        s.ticketless_decisions
    from @extschema@._ext_status() s
$$;

comment on function @extschema@.ext_registry_status() is
    'One row about the registry itself: what is in it, whether its worker, shared memory and triggers are as they should be, and its versions.';

create function @extschema@._ext_reload() returns void
language c volatile
as 'MODULE_PATHNAME', '_ext_reload';

comment on function @extschema@._ext_reload() is 'Drops the compiled registry of every session, at commit.';

create function @extschema@.ext_reload(
    out extensions bigint,
    out versions bigint,
    out instances bigint,
    out policies bigint
) returns record
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select @extschema@._ext_reload();
    select
        (select count(*) from @extschema@.extensions),
        (select count(*) from @extschema@.extension_versions),
        (select count(*) from @extschema@.extension_instances),
        (select count(*) from @extschema@.extension_policies);
$$;

comment on function @extschema@.ext_reload() is
    'Makes every session read the registry anew, and returns what is in it. Changes are seen without it.';

-- requires:
--   70_status

-- What a restore with `pg_dump --disable-triggers`, or ALTER TABLE ... DISABLE TRIGGER, leaves behind.

create function @extschema@.ext_repair() returns table (relation regclass, trigger name, was text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    amiss record;
begin
    for amiss in select t.relation, t.name, t.always, t.enabled from @extschema@._ext_triggers_amiss() t order by 1, 2 loop
        if amiss.enabled = 'missing' then
            raise exception using
                errcode = 'undefined_object',
                message = format('trigger %I of %s is missing', amiss.name, amiss.relation),
                hint = 'Only CREATE EXTENSION brings it back: dump the data, DROP EXTENSION ext_registry CASCADE, restore the dump.';
        end if;
        execute format(
            'alter table %s enable %s trigger %I',
            amiss.relation,
            case when amiss.always then 'always' end,
            amiss.name
        );
        relation := amiss.relation;
        trigger := amiss.name;
        was := amiss.enabled;
        return next;
    end loop;
    -- Rows may have come while nobody was told of them, and grants while nobody gave them.
    update @extschema@.extension_registry_grants set granted_at = granted_at;
    perform @extschema@._ext_reload();
end;
$$;

comment on function @extschema@.ext_repair() is
    'Sets the triggers of the registry right where a restore with --disable-triggers has left them off, gives the recorded levels once more, and makes every session read the registry anew. Returns what was not as it must be. For the owner of the extension.';

-- requires:
--   71_repair

-- What an experienced operator would object to in the present configuration, given the traffic of the last minutes.

create function @extschema@.ext_advice()
returns table (
    severity     text,
    extension_id varchar(255),
    what         text,
    finding      text,
    remedy       text
)
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- Every version that may serve, the one that the row of extensions is included (its row is null then).
    with served as (
        select e.id, e.version as own, l.version, v.version is not null as has_row, coalesce(v.timeout_ms, e.timeout_ms) as timeout_ms,
            v.routing_rules, v.rollout_percent, l.success_count + l.failure_count as outcomes, l.p99_latency_ms,
            l.latency_samples, l.window_requests
        from @extschema@.extensions e
        cross join lateral @extschema@._ext_live_versions(e.id) l
        left join @extschema@.extension_versions v on v.id = e.id and v.version = l.version
        where e.enabled and coalesce(v.enabled, true)
    ),
    health as (
        select h.*, (select max(s.window_requests) from served s where s.id = h.extension_id) as window_requests
        from @extschema@.extension_health h
        join @extschema@.extensions e on e.id = h.extension_id
        where e.enabled
    ),
    instances as (
        select e.id, i.instance_id, i.enabled, i.draining, i.weight, l.eligible,
            l.success_count + l.failure_count as outcomes,
            sum(l.success_count + l.failure_count) over (partition by e.id) as all_outcomes
        from @extschema@.extensions e
        join @extschema@.extension_instances i on i.extension_id = e.id
        cross join lateral @extschema@._ext_live_instance(e.id, i.instance_id) l
        where e.enabled
    ),
    advice(rank, severity, extension_id, what, finding, remedy) as (
        select 1, 'critical', i.id, 'instances',
            format('none of its %s instances may be chosen', count(*)),
            format('update extension_instances set enabled = true, draining = false, health_status = ''unknown'' where extension_id = %L;', i.id)
        from instances i
        group by i.id
        having not bool_or(coalesce(i.eligible, false))
        union all
        select 2, 'warning', h.extension_id, 'circuit_breaker_failure_threshold',
            format('%s failures open the breaker, be they the only ones of %s calls in its window',
                h.circuit_breaker_failure_threshold, h.window_requests),
            format('update extension_health set circuit_breaker_failure_min_rate = 0.01 where extension_id = %L;', h.extension_id)
        from health h
        where h.breaker_mode = 'auto'
            and h.circuit_breaker_failure_threshold < 0.01 * h.window_requests
            and coalesce(h.circuit_breaker_failure_min_rate, 0) < 0.01
        union all
        select 3, 'warning', s.id, 'version ' || s.version,
            format('no call has reached it, while the extension had %s', h.success_count + h.failure_count),
            format('select * from ext_explain(%L, ''{}'');', s.id)
        from served s
        join health h on h.extension_id = s.id
        where s.has_row and s.version <> s.own and s.rollout_percent > 0 and s.outcomes = 0
            and not jsonb_path_exists(s.routing_rules, '$.* ? (@.type() == "array" && @.size() == 0)')
            and h.success_count + h.failure_count >= 100
        union all
        select 4, 'warning', i.id, 'instance ' || i.instance_id,
            format('never chosen, while the others had %s calls', i.all_outcomes),
            case
                when i.weight = 0 then
                    format('update extension_instances set weight = 100 where extension_id = %L and instance_id = %L;', i.id, i.instance_id)
                else format('select * from ext_instances(%L) where instance_id = %L;', i.id, i.instance_id)
            end
        from instances i
        where i.enabled and not i.draining and i.outcomes = 0 and i.all_outcomes >= 100
        union all
        select 5, 'warning', s.id, 'version ' || s.version,
            format('its rule for %s lists no value: no request can reach it', to_json(left(r.key, 100))),
            format('update extension_versions set enabled = false where id = %L and version = %L;', s.id, s.version)
        from served s
        cross join lateral jsonb_each(s.routing_rules) r
        where s.has_row and s.version <> s.own and r.value = '[]'
        union all
        select 6, 'warning', s.id, 'version ' || s.version,
            format('the 99th percentile is %s ms, a call may take %s: the slowest are cut off',
                round(s.p99_latency_ms::numeric, 1), s.timeout_ms),
            case
                when s.has_row then
                    format('update extension_versions set timeout_ms = %s where id = %L and version = %L;',
                        least(300000, ceil(2 * s.p99_latency_ms)::integer), s.id, s.version)
                else format('update extensions set timeout_ms = %s where id = %L;',
                    least(300000, ceil(2 * s.p99_latency_ms)::integer), s.id)
            end
        from served s
        where s.latency_samples >= 100 and s.p99_latency_ms >= 0.95 * s.timeout_ms and s.timeout_ms < 300000
        union all
        select 7, 'info', h.extension_id, 'breaker_mode',
            format('the breaker is %s: it does not follow what calls come to', h.breaker_mode),
            format('update extension_health set breaker_mode = ''auto'' where extension_id = %L;', h.extension_id)
        from health h
        where h.breaker_mode <> 'auto'
        union all
        select 8, 'info', h.extension_id, 'circuit_breaker',
            'neither a count nor a rate of failures opens the breaker',
            format('update extension_health set circuit_breaker_failure_threshold = 5, circuit_breaker_error_rate_threshold = 0.5 where extension_id = %L;',
                h.extension_id)
        from health h
        where h.breaker_mode = 'auto'
            and h.circuit_breaker_failure_threshold is null
            and h.circuit_breaker_error_rate_threshold is null
            and h.slow_call_rate_threshold is null
    )
    select a.severity, a.extension_id::varchar(255), a.what, a.finding, a.remedy
    from advice a
    order by a.rank, a.extension_id, a.what
$$;

comment on function @extschema@.ext_advice() is
    'What an experienced operator would object to now: severity (critical, warning, info), extension, what it is about, the finding, and the statement that mends it or shows why. No row: nothing to object to.';

-- requires:
--   72_advice

-- Calls asked for from SQL: queued here, made by a bridge, answered here.
--
-- A row is visible to bridges once its transaction has committed. A bridge claims it by a lease (leased_by, leased_until) and
-- writes what came of it; a lease that runs out is free to others, so that every call is made at least once. Rows are gone
-- after 1 h (the worker deletes them), unfinished ones too. Never dumped.
--
-- Payloads and answers are read by who asked, and by the levels admin and bridge: row level security, by the role that is
-- current, so that a view or a function shows no more than its caller may see. (The owner and superusers see all, as ever.)
--
-- UPGRADE SCRIPT NEEDED, as in 20_registry.sql.

create table @extschema@.extension_invocations (
    id           bigint generated always as identity,
    extension_id varchar(255) not null,
    payload      jsonb not null,
    context      jsonb not null default '{}'::jsonb,
    asked_by     name not null default current_user,
    asked_at     timestamptz not null default clock_timestamp(),
    asked_in     xid8 not null default pg_current_xact_id(),
    state        varchar(32) not null default 'queued',
    attempts     integer not null default 0,
    leased_by    text,
    leased_until timestamptz,
    result       jsonb,
    error        jsonb,
    finished_at  timestamptz,
    constraint extension_invocations_pkey primary key (id),
    constraint extension_invocations_extension_id_check check (@extschema@._ext_check_id('extension_id', extension_id)),
    constraint extension_invocations_payload_check check (@extschema@._ext_check_object('payload', payload)),
    constraint extension_invocations_payload_size_check
        check (@extschema@._ext_check_int('size of payload in bytes', octet_length(payload::text), 2, 1048576)),
    constraint extension_invocations_context_check check (@extschema@._ext_check_object('context', context)),
    constraint extension_invocations_context_size_check
        check (@extschema@._ext_check_int('size of context in bytes', octet_length(context::text), 2, 65536)),
    constraint extension_invocations_state_check
        check (@extschema@._ext_check_one_of('state', state, array['queued', 'running', 'done', 'failed'])),
    constraint extension_invocations_unfinished_check
        check ((state in ('done', 'failed')) = (finished_at is not null))
);

create index extension_invocations_open_idx on @extschema@.extension_invocations (id) where finished_at is null;
create index extension_invocations_asked_at_idx on @extschema@.extension_invocations (asked_at);

comment on table @extschema@.extension_invocations is
    'Calls asked for by ext_invoke, and their results; read by who asked and by level admin, gone after 1 h, not dumped.';
comment on column @extschema@.extension_invocations.id is 'Ascending number.';
comment on column @extschema@.extension_invocations.extension_id is 'The extension to call.';
comment on column @extschema@.extension_invocations.payload is 'What it is sent. A JSON object of at most 1 MiB.';
comment on column @extschema@.extension_invocations.context is
    'What the decision looks at. A JSON object of at most 64 KiB; tenant_id, policy_id, trace_id and request_id also name the call.';
comment on column @extschema@.extension_invocations.asked_by is 'The role that asked.';
comment on column @extschema@.extension_invocations.asked_at is 'When, by the clock.';
comment on column @extschema@.extension_invocations.asked_in is 'The transaction that asked.';
comment on column @extschema@.extension_invocations.state is 'queued, running, done or failed.';
comment on column @extschema@.extension_invocations.attempts is 'How often a bridge has taken it up.';
comment on column @extschema@.extension_invocations.leased_by is 'The bridge that makes the call.';
comment on column @extschema@.extension_invocations.leased_until is 'Until when no other bridge takes it up.';
comment on column @extschema@.extension_invocations.result is 'The reply of the service, once done.';
comment on column @extschema@.extension_invocations.error is 'Why it failed: code, message, details, as callers on NATS are told.';
comment on column @extschema@.extension_invocations.finished_at is 'When it was done or had failed.';

-- A right that means: all rows.
create function @extschema@._ext_all_invocations() returns boolean
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select true $$;

comment on function @extschema@._ext_all_invocations() is
    'Whoever may execute this reads and changes every row of extension_invocations, as far as he may read and change the table.';

alter table @extschema@.extension_invocations enable row level security;

-- (pg_dump leaves the policies of an extension's tables to the extension, since the minor releases of November 2023. An older
-- one dumps them too; its restore says once for each that the policy exists already, and goes on.)
create policy own on @extschema@.extension_invocations
    using (asked_by = current_user);
create policy every on @extschema@.extension_invocations
    using ((select has_function_privilege('@extschema@._ext_all_invocations()'::regprocedure, 'execute')));

create function @extschema@.ext_invoke(id text, payload jsonb, context jsonb default '{}') returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    asked bigint;
begin
    if payload is null or context is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = format('%s is NULL', case when payload is null then 'payload' else 'context' end),
            hint = 'It must be a JSON object, such as ''{}''.';
    end if;
    if not exists (select from @extschema@.extensions e where e.id = ext_invoke.id) then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s is not registered', coalesce(to_json(left(id, 100))::text, 'NULL')),
            hint = 'See the registered ones with: select id from extensions.';
    end if;
    insert into @extschema@.extension_invocations (extension_id, payload, context)
    values (ext_invoke.id, ext_invoke.payload, ext_invoke.context)
    returning extension_invocations.id into asked;
    -- Bridges listen. They also look from time to time: a row that is inserted without this is found, too.
    perform pg_notify('ext_registry_invocations', '');
    return asked;
end;
$$;

comment on function @extschema@.ext_invoke(text, jsonb, jsonb) is
    'Queues a call of an extension, made by a bridge once the transaction has committed; returns its number for ext_invoke_result. It notifies, so the transaction cannot be prepared; one that must be inserts into extension_invocations itself.';

create function @extschema@.ext_invoke_result(
    id bigint,
    wait interval default '5 s',
    out state text,
    out result jsonb,
    out error jsonb,
    out attempts integer,
    out finished_at timestamptz
) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    asked_in xid8;
    until timestamptz;
    pause double precision := 0.005;
begin
    if wait is null or wait < '0' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('wait is %s', coalesce(wait::text, 'NULL')),
            hint = 'It must be 0 or longer; 0 does not wait.';
    end if;
    until := clock_timestamp() + least(wait, '1 h');
    -- Every statement of a volatile function sees what has been committed by then.
    loop
        select i.state, i.result, i.error, i.attempts, i.finished_at, i.asked_in
        into state, result, error, attempts, finished_at, asked_in
        from @extschema@.extension_invocations i
        where i.id = ext_invoke_result.id;
        if not found then
            raise exception using
                errcode = 'undefined_object',
                message = format('there is no call %s', coalesce(id::text, 'NULL')),
                hint = 'Calls are gone after 1 h, and are seen by the role that asked and by level admin only.';
        end if;
        exit when finished_at is not null;
        if asked_in = pg_current_xact_id_if_assigned() then
            raise exception using
                errcode = 'object_not_in_prerequisite_state',
                message = format('call %s was asked for in this transaction, and is not made before it commits', id),
                hint = 'COMMIT first; or, outside a transaction block, CALL ext_invoke_wait(...), which does all of it.';
        end if;
        exit when clock_timestamp() >= until;
        if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
            raise exception using
                errcode = 'invalid_transaction_state',
                message = format('a %s transaction never sees the result of a call that is not finished when it begins',
                    current_setting('transaction_isolation')),
                hint = 'Wait in a READ COMMITTED transaction, or ask with a wait of 0 in a new transaction each time.';
        end if;
        perform pg_sleep(least(pause, extract(epoch from until - clock_timestamp())::double precision));
        pause := least(pause * 1.5, 0.1);
    end loop;
end;
$$;

comment on function @extschema@.ext_invoke_result(bigint, interval) is
    'State and result of a call queued by ext_invoke; waits until it is done or has failed, at most that long. Not in the transaction that asked.';

-- No SET: a procedure that commits cannot have one. So its names are written out, and it uses no operator.
create procedure @extschema@.ext_invoke_wait(
    id text,
    payload jsonb,
    context jsonb default '{}',
    inout result jsonb default null
)
language plpgsql
as $$
declare
    asked constant pg_catalog.int8 := @extschema@.ext_invoke(id, payload, context);
    answer record;
begin
    commit;
    -- Each look is a transaction of its own: it sees the result under every isolation level, and holds no snapshot.
    for look in 1 .. 3000 loop
        select r.result, r.error, r.finished_at
        into answer
        from @extschema@.ext_invoke_result(asked, '0'::pg_catalog.interval) r;
        if answer.error is not null then
            raise exception using
                errcode = 'external_routine_exception',
                message = pg_catalog.jsonb_extract_path_text(answer.error, 'message'),
                detail = answer.error::pg_catalog.text,
                hint = 'The detail has the error as callers on NATS are told.';
        end if;
        if answer.finished_at is not null then
            result := answer.result;
            return;
        end if;
        commit;
        perform pg_catalog.pg_sleep(0.02);
    end loop;
    raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = pg_catalog.format('call %s has no result after a minute', asked),
        hint = pg_catalog.format('Is a bridge running? Ask again: SELECT * FROM ext_invoke_result(%s);', asked);
end;
$$;

comment on procedure @extschema@.ext_invoke_wait(text, jsonb, jsonb, jsonb) is
    'Queues a call, commits, waits for it (a minute at most) and gives its result; a call that fails is an error 38000 with the error object as its detail. Not within a transaction block.';

-- requires:
--   80_invoke

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

-- requires:
--   81_publish

-- Who may do what. PUBLIC: nothing but to name the type hdr. The levels are given by ext_grant and recorded, so that an
-- update script can give what it has added:  select @extschema@._ext_apply_grants();
--
--   viewer    reads the registry, its health and its history; decides and reports nothing
--   operator  also registers and changes extensions, instances, settings and policies, resets breakers, decides, reports and
--             calls
--   admin     also deletes, enables and disables, renames, and owns versions with their routing rules
--   bridge    decides, reports and reads; makes queued calls and publishes events, and writes down how far it is with these;
--             writes the health of instances, and registers and removes those that services register themselves
--
-- No function runs with rights its caller lacks (the audit trigger excepted), so a level holds the rights to what its
-- functions and views use inside, too.

create function @extschema@._ext_privileges(level text) returns table (privilege text, kind text, object name)
language sql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select p.privilege, p.kind, p.object::name
    from (
        values
            ('viewer', 'select', 'table', 'extensions'),
            ('viewer', 'select', 'table', 'extension_versions'),
            ('viewer', 'select', 'table', 'extension_instances'),
            ('viewer', 'select', 'table', 'extension_policies'),
            ('viewer', 'select', 'table', 'extension_health_settings'),
            ('viewer', 'select', 'table', 'extension_health'),
            ('viewer', 'select', 'table', 'extension_version_health'),
            ('viewer', 'select', 'table', 'extension_instance_health'),
            ('viewer', 'select', 'table', 'extension_breaker_resets'),
            ('viewer', 'select', 'table', 'extension_breaker_events'),
            ('viewer', 'select', 'table', 'extension_metrics'),
            ('viewer', 'select', 'table', 'extension_audit_log'),
            ('viewer', 'select', 'table', '_ext_documents'),
            ('viewer', 'select', 'table', 'ext_top'),
            ('viewer', 'select', 'table', 'extension_changes'),
            ('viewer', 'execute', 'function', 'ext_policy_uses'),
            ('viewer', 'execute', 'function', 'ext_restore'),
            ('viewer', 'execute', 'function', '_ext_rows_at'),
            ('viewer', 'execute', 'function', 'ext_advice'),
            ('viewer', 'execute', 'function', 'ext_explain'),
            ('viewer', 'execute', 'function', 'ext_lookup'),
            ('viewer', 'execute', 'function', 'ext_lookup_by_type'),
            ('viewer', 'execute', 'function', 'ext_versions'),
            ('viewer', 'execute', 'function', 'ext_instances'),
            ('viewer', 'execute', 'function', 'ext_health'),
            ('viewer', 'execute', 'function', 'ext_health_all'),
            ('viewer', 'execute', 'function', 'ext_health_summary'),
            ('viewer', 'execute', 'function', 'ext_registry_status'),
            ('viewer', 'execute', 'function', 'ext_export'),
            ('viewer', 'execute', 'function', 'ext_validate'),
            ('viewer', 'execute', 'function', 'ext_diff'),
            ('viewer', 'execute', 'function', 'hdr_quantile'),
            ('viewer', 'execute', 'function', 'hdr_count'),
            ('viewer', 'execute', 'function', 'hdr_mean'),
            ('viewer', 'execute', 'function', 'hdr_max'),
            ('viewer', 'execute', 'function', 'hdr_merge'),
            ('viewer', 'execute', 'function', 'hdr_agg'),
            ('viewer', 'execute', 'function', 'hdr_buckets'),
            ('viewer', 'execute', 'function', 'ext_preview'),
            ('viewer', 'execute', 'function', 'ext_latency'),
            ('viewer', 'execute', 'function', 'ext_latency_histogram'),
            ('viewer', 'execute', 'function', 'ext_history'),
            ('viewer', 'execute', 'function', '_ext_live_since'),
            ('viewer', 'execute', 'function', '_ext_live_minutes'),
            ('viewer', 'execute', 'function', '_ext_minutes'),
            ('viewer', 'execute', 'function', '_ext_edges'),
            ('viewer', 'execute', 'function', '_ext_document_keys'),
            ('viewer', 'execute', 'function', '_ext_document_problems'),
            ('viewer', 'execute', 'function', '_ext_without_nulls'),
            ('viewer', 'execute', 'function', '_ext_duplicates'),
            ('viewer', 'execute', 'function', '_ext_path'),
            ('viewer', 'execute', 'function', '_ext_rules_problems'),
            ('viewer', 'execute', 'function', '_ext_policy_problems'),
            ('viewer', 'execute', 'function', '_ext_would_be'),
            ('viewer', 'execute', 'function', '_ext_row_problems'),
            ('viewer', 'execute', 'function', '_ext_review_row'),
            ('viewer', 'execute', 'function', '_ext_review_extension'),
            ('viewer', 'execute', 'function', '_ext_review'),
            ('viewer', 'execute', 'function', '_ext_doubts'),
            ('viewer', 'execute', 'function', '_ext_check_id'),
            ('viewer', 'execute', 'function', '_ext_check_version'),
            ('viewer', 'execute', 'function', '_ext_check_subject'),
            ('viewer', 'execute', 'function', '_ext_check_int'),
            ('viewer', 'execute', 'function', '_ext_check_number'),
            ('viewer', 'execute', 'function', '_ext_check_one_of'),
            ('viewer', 'execute', 'function', '_ext_check_object'),
            ('viewer', 'execute', 'function', '_ext_check_rules'),
            ('viewer', 'execute', 'function', '_ext_check_policy'),
            ('viewer', 'execute', 'function', '_ext_epoch'),
            ('viewer', 'execute', 'function', '_ext_live_extension'),
            ('viewer', 'execute', 'function', '_ext_live_versions'),
            ('viewer', 'execute', 'function', '_ext_live_instance'),
            ('viewer', 'execute', 'function', '_ext_merged_latency'),
            ('viewer', 'execute', 'function', '_ext_status'),
            ('viewer', 'execute', 'function', '_ext_triggers'),
            ('viewer', 'execute', 'function', '_ext_triggers_amiss'),

            ('operator', 'insert', 'table', 'extensions'),
            ('operator',
                'update (type, subject, timeout_ms, retry, config, metadata, balancing, hash_key, updated_by)',
                'table', 'extensions'),
            ('operator', 'insert', 'table', 'extension_instances'),
            ('operator', 'update', 'table', 'extension_instances'),
            ('operator', 'insert', 'table', 'extension_health_settings'),
            ('operator', 'update', 'table', 'extension_health_settings'),
            ('operator', 'update', 'table', 'extension_health'),
            ('operator', 'insert', 'table', 'extension_breaker_resets'),
            ('operator', 'update', 'table', 'extension_breaker_resets'),
            ('operator', 'insert', 'table', 'extension_policies'),
            ('operator', 'update', 'table', 'extension_policies'),
            ('operator', 'execute', 'function', 'ext_select'),
            ('operator', 'execute', 'function', 'ext_select_many'),
            ('operator', 'execute', 'function', 'ext_report'),
            ('operator', 'execute', 'function', 'ext_report_many'),
            ('operator', 'execute', 'function', 'ext_stats_reset'),
            ('operator', 'execute', 'function', '_ext_stats_reset'),
            ('operator', 'execute', 'function', 'ext_breaker_force'),
            ('operator', 'execute', 'function', 'ext_breaker_reset'),
            ('operator', 'execute', 'function', 'ext_register'),
            ('operator', 'execute', 'function', 'ext_import'),
            ('operator', 'execute', 'function', 'ext_reload'),
            ('operator', 'execute', 'function', '_ext_raise_reset'),
            ('operator', 'execute', 'function', '_ext_read_document'),
            ('operator', 'execute', 'function', '_ext_check_unique'),
            ('operator', 'execute', 'function', '_ext_put'),
            ('operator', 'execute', 'function', '_ext_reload'),
            -- Who asked and what became of it is not the caller's to write.
            ('operator', 'insert (extension_id, payload, context)', 'table', 'extension_invocations'),
            ('operator', 'select', 'table', 'extension_invocations'),
            ('operator', 'execute', 'function', 'ext_invoke'),
            ('operator', 'execute', 'function', 'ext_invoke_result'),
            ('operator', 'execute', 'function', 'ext_invoke_wait'),

            ('admin', 'update', 'table', 'extensions'),
            ('admin', 'delete', 'table', 'extensions'),
            ('admin', 'insert', 'table', 'extension_versions'),
            ('admin', 'update', 'table', 'extension_versions'),
            ('admin', 'delete', 'table', 'extension_versions'),
            ('admin', 'delete', 'table', 'extension_instances'),
            ('admin', 'delete', 'table', 'extension_health_settings'),
            ('admin', 'delete', 'table', 'extension_policies'),
            -- A rename takes history along.
            ('admin', 'update (extension_id)', 'table', 'extension_breaker_events'),
            ('admin', 'update (extension_id)', 'table', 'extension_metrics'),
            ('admin', 'execute', 'function', '_ext_all_invocations'),

            ('bridge', 'select', 'table', 'extensions'),
            ('bridge', 'select', 'table', 'extension_versions'),
            ('bridge', 'select', 'table', 'extension_instances'),
            ('bridge', 'select', 'table', 'extension_policies'),
            ('bridge', 'select', 'table', 'extension_health_settings'),
            ('bridge', 'select', 'table', 'extension_health'),
            ('bridge', 'select', 'table', 'extension_version_health'),
            ('bridge', 'select', 'table', 'extension_instance_health'),
            ('bridge', 'select', 'table', 'extension_breaker_events'),
            ('bridge', 'select', 'table', '_ext_documents'),
            ('bridge', 'select (id, extension_id, action, table_name, changed_by, changed_at, transaction_id)', 'table',
                'extension_audit_log'),
            ('bridge', 'execute', 'function', 'ext_select'),
            ('bridge', 'execute', 'function', 'ext_select_many'),
            ('bridge', 'select', 'table', 'extension_metrics'),
            ('bridge', 'insert', 'table', 'extension_metrics'),
            ('bridge', 'update', 'table', 'extension_metrics'),
            ('bridge', 'select', 'table', 'extension_invocations'),
            ('bridge', 'update (state, attempts, leased_by, leased_until, result, error, finished_at)', 'table',
                'extension_invocations'),
            ('bridge', 'execute', 'function', '_ext_all_invocations'),
            ('bridge', 'execute', 'function', '_ext_check_id'),
            ('bridge', 'execute', 'function', '_ext_check_int'),
            ('bridge', 'execute', 'function', '_ext_check_object'),
            ('bridge', 'execute', 'function', '_ext_check_one_of'),
            ('bridge', 'update (health_status, last_health_check)', 'table', 'extension_instances'),
            -- Only of rows marked as discovered (30_triggers.sql).
            ('bridge',
                'insert (extension_id, instance_id, subject, version, weight, metadata, health_status, last_health_check)',
                'table', 'extension_instances'),
            ('bridge', 'delete', 'table', 'extension_instances'),
            ('bridge', 'execute', 'function', '_ext_check_subject'),
            ('bridge', 'execute', 'function', '_ext_check_version'),
            ('bridge', 'select', 'table', 'extension_publications'),
            ('bridge', 'insert', 'table', 'extension_publications'),
            ('bridge', 'update', 'table', 'extension_publications'),
            ('bridge', 'execute', 'function', 'ext_report_merge'),
            ('bridge', 'execute', 'function', '_ext_merge'),
            ('bridge', 'execute', 'function', 'hdr_merge'),
            ('bridge', 'execute', 'function', 'ext_preview'),
            ('bridge', 'execute', 'function', 'ext_explain'),
            ('bridge', 'execute', 'function', 'ext_report'),
            ('bridge', 'execute', 'function', 'ext_report_many'),
            ('bridge', 'execute', 'function', 'ext_lookup'),
            ('bridge', 'execute', 'function', 'ext_lookup_by_type'),
            ('bridge', 'execute', 'function', 'ext_versions'),
            ('bridge', 'execute', 'function', 'ext_instances'),
            ('bridge', 'execute', 'function', 'ext_health'),
            ('bridge', 'execute', 'function', 'ext_health_all'),
            ('bridge', 'execute', 'function', 'ext_health_summary'),
            ('bridge', 'execute', 'function', 'ext_registry_status'),
            ('bridge', 'execute', 'function', 'ext_export'),
            ('bridge', 'execute', 'function', '_ext_epoch'),
            ('bridge', 'execute', 'function', '_ext_live_extension'),
            ('bridge', 'execute', 'function', '_ext_live_versions'),
            ('bridge', 'execute', 'function', '_ext_live_instance'),
            ('bridge', 'execute', 'function', '_ext_merged_latency'),
            ('bridge', 'execute', 'function', '_ext_status'),
            ('bridge', 'execute', 'function', '_ext_triggers'),
            ('bridge', 'execute', 'function', '_ext_triggers_amiss')
    ) p(level, privilege, kind, object)
    where p.level = _ext_privileges.level
        or (p.level = 'viewer' and _ext_privileges.level in ('operator', 'admin'))
        or (p.level = 'operator' and _ext_privileges.level = 'admin')
$$;

comment on function @extschema@._ext_privileges(text) is 'The rights that a level consists of.';

create function @extschema@._ext_set_level(role name, level text, granted boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    p record;
begin
    if granted and not has_schema_privilege(role, '@extschema@'::regnamespace, 'usage') then
        execute format('grant usage on schema @extschema@ to %I', role);
    end if;
    for p in
        select given.privilege, given.kind, c.oid::regclass::text as object
        from @extschema@._ext_privileges(level) given
        join pg_class c on c.relname = given.object and c.relnamespace = '@extschema@'::regnamespace
        where given.kind = 'table'
        union all
        select given.privilege, 'routine', f.oid::regprocedure::text
        from @extschema@._ext_privileges(level) given
        join pg_proc f on f.proname = given.object and f.pronamespace = '@extschema@'::regnamespace
        join pg_depend member on member.classid = 'pg_proc'::regclass and member.objid = f.oid and member.deptype = 'e'
        join pg_extension x on x.oid = member.refobjid and x.extname = 'ext_registry'
        where given.kind = 'function'
    loop
        if granted then
            execute format('grant %s on %s %s to %I', p.privilege, p.kind, p.object, role);
        else
            execute format('revoke %s on %s %s from %I', p.privilege, p.kind, p.object, role);
        end if;
    end loop;
end;
$$;

comment on function @extschema@._ext_set_level(name, text, boolean) is
    'Gives the rights of a level to a role, or takes them. Usage of the schema, once given, stays.';

-- Rows of extension_registry_grants are what is meant; the trigger makes it so, also when a dump brings them back. It can be
-- put off to the end of the transaction, which _ext_apply_grants does: a GRANT within an extension's script would become one
-- of the extension's initial privileges; those are not dumped, and outlive the role. (So does a REVOKE there with what has
-- been granted before; hence it touches only what PUBLIC has.)
create function @extschema@._ext_apply_grant() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    kept text;
begin
    if not exists (select from pg_roles r where r.rolname = coalesce(new.role, old.role)) then
        if tg_op <> 'DELETE' then
            raise warning using
                message = format('role %s does not exist here: %s is not given to it', to_json(new.role::text), new.level),
                hint = 'Once it exists: SELECT ext_grant(role, level);';
        end if;
        return null;
    end if;
    if tg_op <> 'DELETE' then
        perform @extschema@._ext_set_level(new.role, new.level, true);
        return null;
    end if;
    perform @extschema@._ext_set_level(old.role, old.level, false);
    for kept in select g.level from @extschema@.extension_registry_grants g where g.role = old.role loop
        perform @extschema@._ext_set_level(old.role, kept, true);
    end loop;
    return null;
end;
$$;

comment on function @extschema@._ext_apply_grant() is 'Trigger: gives or takes the rights that a row of extension_registry_grants means.';

create constraint trigger apply after insert or update or delete on @extschema@.extension_registry_grants
    deferrable initially immediate
    for each row execute function @extschema@._ext_apply_grant();

create function @extschema@.ext_grant(role regrole, level text) returns void
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from pg_roles r where r.oid = ext_grant.role) then
        raise exception using
            errcode = 'undefined_object',
            message = format('role %s does not exist', ext_grant.role),
            hint = 'CREATE ROLE makes one; \du of psql lists them.';
    end if;
    insert into @extschema@.extension_registry_grants (role, level)
    values (pg_get_userbyid(ext_grant.role), ext_grant.level)
    on conflict on constraint extension_registry_grants_pkey do update
    set granted_by = excluded.granted_by, granted_at = excluded.granted_at;
end;
$$;

comment on function @extschema@.ext_grant(regrole, text) is
    'Gives a role a level: viewer, operator, admin or bridge. For the owner of the extension.';

create function @extschema@.ext_revoke(role regrole, level text) returns void
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
begin
    perform @extschema@._ext_check_one_of('level', level, array['viewer', 'operator', 'admin', 'bridge']);
    delete from @extschema@.extension_registry_grants g
    where g.role = pg_get_userbyid(ext_revoke.role) and g.level = ext_revoke.level;
    if not found then
        raise notice '% has not been given the level %', ext_revoke.role, ext_revoke.level;
    end if;
end;
$$;

comment on function @extschema@.ext_revoke(regrole, text) is
    'Takes a level from a role again; what other levels of the role give stays. For the owner of the extension.';

create function @extschema@._ext_apply_grants() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    member record;
begin
    for member in
        select f.oid::regprocedure::text as object
        from pg_proc f
        join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = f.oid and d.deptype = 'e'
        join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
        where has_function_privilege('public', f.oid, 'execute')
    loop
        execute format('revoke all on routine %s from public', member.object);
    end loop;
    for member in
        select t.oid::regtype::text as object
        from pg_type t
        join pg_depend d on d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
        join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
        -- (Row types of tables and views stay as Postgres makes them: pg_dump knows no rights on these.)
        left join pg_class c on c.oid = t.typrelid
        where t.typname <> 'hdr' and t.typelem = 0 and coalesce(c.relkind, 'c') = 'c'
            and has_type_privilege('public', t.oid, 'usage')
    loop
        execute format('revoke all on type %s from public', member.object);
    end loop;
    set constraints @extschema@.apply deferred;
    update @extschema@.extension_registry_grants set granted_at = granted_at;
end;
$$;

comment on function @extschema@._ext_apply_grants() is
    'Takes everything from PUBLIC but the type hdr, and gives the recorded levels once more at the end of the transaction. For the end of install and update scripts.';

select @extschema@._ext_apply_grants();

-- From here on the launcher knows this database.
create function @extschema@._ext_attach() returns void
language c volatile
as 'MODULE_PATHNAME', '_ext_attach';

comment on function @extschema@._ext_attach() is 'Tells the launcher of the workers about this database.';

revoke all on function @extschema@._ext_attach() from public;

select @extschema@._ext_attach();
