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
