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
