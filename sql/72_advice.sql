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
-- Compiling it would take longer than running it.
set jit = off
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
    shortfalls as (
        select s.id, s.own, s.version, trim_scale(s.rollout_percent) as rollout_percent, f.never_key, f.gets_percent::numeric,
            f.taken_by, f.taken_percent::numeric
        from (select distinct s.id from served s where s.has_row) e
        cross join lateral @extschema@._ext_shortfalls(e.id) f
        join served s on s.id = e.id and s.version = f.version and s.has_row
    ),
    health as (
        select h.*, w.window_requests
        from @extschema@.extension_health h
        join @extschema@.extensions e on e.id = h.extension_id
        left join (select s.id, max(s.window_requests) as window_requests from served s group by s.id) w on w.id = h.extension_id
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
            and not exists (select from shortfalls f where f.id = s.id and f.version = s.version and coalesce(f.gets_percent, 0) = 0)
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
        select 5, 'warning', f.id, 'version ' || f.version,
            format('its rule for %s holds for no value: no request can reach it', to_json(left(f.never_key, 100))),
            format('update extension_versions set enabled = false where id = %L and version = %L;', f.id, f.version)
        from shortfalls f
        -- The row of extensions serves under its own name all the same; a disabled row of that name would take that away.
        where f.never_key is not null and f.version <> f.own
        union all
        select 5, 'warning', f.id, 'version ' || f.version,
            format('it gets %s of its %s %%: version %s has the same rules and takes %s %% first',
                f.gets_percent, f.rollout_percent, f.taken_by, f.taken_percent),
            case
                when f.taken_percent > f.rollout_percent - f.gets_percent then
                    format('update extension_versions set rollout_percent = %s where id = %L and version = %L;',
                        f.taken_percent - (f.rollout_percent - f.gets_percent), f.id, f.taken_by)
                else
                    format('update extension_versions set rollout_percent = %s where id = %L and version = %L;',
                        f.gets_percent, f.id, f.version)
            end
        from shortfalls f
        where f.taken_by is not null
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
