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
