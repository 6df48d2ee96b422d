-- A registry without an extension, as somebody would write it in PL/pgSQL who knows Postgres well, with the rows of registry.sql. It
-- does what a call needs and no more, and where it can choose it takes the cheaper way:
--
-- - One query decides: rules that match, most keys first, then the higher version, whose breaker lets pass. What follows from the
--   configuration alone (specificity, order of versions, bounds of weights) is worked out when it is written.
-- - Rules are equality and lists, which one operator of jsonb does: a value is in a list if the list contains it. No operators,
--   dotted paths, shares, tenants; no version beneath those of the table.
-- - The choice of an instance is a random one by weight, one descent of an index. An exact one would need a write for each decision.
-- - One update reports: counters, window, breaker, last latency, a histogram of 40 buckets (25 % wide; those of the extension have
--   1.6 %). The window is a fixed one that starts anew (the extension's slides). Instances are not counted; the other report,
--   with an instance, counts them too, as the extension does.
-- - State is one row for each version, apart from the configuration; no changing column has an index and pages are mostly
--   empty, so that updates are HOT and dead rows are pruned where they lie.
-- - No tickets: a caller that never reports is not missed, a second report counts twice.
--
-- For psql, with the variable `extensions`. The calls are in pgbench/plpgsql.sql.
create schema plpgsql;
set search_path = plpgsql;

create table extensions (
    id text primary key,
    type text not null,
    enabled boolean not null default true
);

create table versions (
    extension_id text not null references extensions on delete cascade,
    version text not null,
    subject text not null,
    timeout_ms integer not null,
    retry integer not null,
    config jsonb not null default '{}',
    rules jsonb not null default '{}',
    enabled boolean not null default true,
    -- Of those that match the least wins.
    place integer not null,
    total_weight integer not null default 0,
    primary key (extension_id, version)
);
create index on versions (extension_id, place) where enabled;

create table instances (
    extension_id text not null references extensions on delete cascade,
    instance_id text not null,
    subject text not null,
    weight integer not null,
    -- The sum of the weights up to this one: it takes what is drawn from the last one's bound up to here.
    bound integer not null,
    primary key (extension_id, instance_id)
);
create unique index on instances (extension_id, bound) include (instance_id, subject);

create table health (
    extension_id text not null,
    version text not null,
    -- Breaker: closed, open until, half-open with probes.
    state "char" not null default 'c',
    open_until timestamptz not null default '-infinity',
    probes integer not null default 0,
    recovered integer not null default 0,
    -- Window.
    window_end timestamptz not null default '-infinity',
    window_successes integer not null default 0,
    window_failures integer not null default 0,
    -- Statistics.
    success_count bigint not null default 0,
    failure_count bigint not null default 0,
    last_success timestamptz,
    last_failure timestamptz,
    last_latency_ms double precision,
    latency_sum double precision not null default 0,
    latencies integer[] not null default array_fill(0, array[40]),
    primary key (extension_id, version),
    foreign key (extension_id, version) references versions on delete cascade
) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100000);

create table instance_health (
    extension_id text not null,
    instance_id text not null,
    success_count bigint not null default 0,
    failure_count bigint not null default 0,
    last_success timestamptz,
    last_failure timestamptz,
    last_latency_ms double precision,
    latency_sum double precision not null default 0,
    latencies integer[] not null default array_fill(0, array[40]),
    primary key (extension_id, instance_id),
    foreign key (extension_id, instance_id) references instances on delete cascade
) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100000);

create function decide(
    extension_id text, context jsonb,
    out type text, out version text, out instance_id text, out subject text, out timeout_ms integer, out retry integer,
    out config jsonb, out allowed boolean, out reason text, out retry_after_ms integer
)
language plpgsql
as $$
declare
    found_version record;
    drawn integer;
begin
    select e.type, e.enabled, v.version, v.subject, v.timeout_ms, v.retry, v.config, v.total_weight, h.state
    into found_version
    from plpgsql.extensions e
    join plpgsql.versions v on v.extension_id = e.id and v.enabled
    join plpgsql.health h on h.extension_id = v.extension_id and h.version = v.version
    where e.id = decide.extension_id
        and (h.state = 'c' or (h.state = 'o' and h.open_until <= now()) or (h.state = 'h' and h.probes < 3))
        and not exists (
            select from jsonb_each(v.rules) rule where (rule.value @> (decide.context -> rule.key)) is not true
        )
    order by v.place
    limit 1;

    if not found or not found_version.enabled then
        allowed := false;
        select case when not e.enabled then 'extension_disabled' else 'extension_circuit_open' end
        into reason
        from plpgsql.extensions e where e.id = decide.extension_id;
        reason := coalesce(reason, 'extension_not_found');
        return;
    end if;

    if found_version.state <> 'c' then
        -- A probe: at most three at once, whoever asks. The row is looked at again under its lock.
        update plpgsql.health h
        set state = 'h', probes = case h.state when 'o' then 1 else h.probes + 1 end,
            recovered = case h.state when 'o' then 0 else h.recovered end
        where h.extension_id = decide.extension_id and h.version = found_version.version
            and ((h.state = 'o' and h.open_until <= now()) or (h.state = 'h' and h.probes < 3));
        if not found then
            allowed := false;
            reason := 'extension_circuit_open';
            return;
        end if;
        reason := 'probe';
    end if;

    type := found_version.type;
    version := found_version.version;
    subject := found_version.subject;
    timeout_ms := found_version.timeout_ms;
    retry := found_version.retry;
    config := found_version.config;
    allowed := true;
    reason := coalesce(reason, 'ok');
    if found_version.total_weight > 0 then
        drawn := floor(random() * found_version.total_weight);
        select i.instance_id, i.subject into instance_id, subject
        from plpgsql.instances i
        where i.extension_id = decide.extension_id and i.bound > drawn
        order by i.bound
        limit 1;
    end if;
end;
$$;

create function report(extension_id text, version text, outcome text, latency_ms double precision) returns void
language plpgsql
as $$
declare
    failed constant integer := case outcome when 'success' then 0 else 1 end;
    bucket constant integer := least(greatest(1 + floor(3 * ln(greatest(latency_ms, 0.1)) / ln(2.0::double precision))::integer, 1), 40);
begin
    -- SET reads the row as it was: the window's counts with this outcome are written out where they are judged.
    update plpgsql.health h
    set success_count = h.success_count + 1 - failed,
        failure_count = h.failure_count + failed,
        last_success = case failed when 0 then now() else h.last_success end,
        last_failure = case failed when 1 then now() else h.last_failure end,
        last_latency_ms = report.latency_ms,
        latency_sum = h.latency_sum + report.latency_ms,
        latencies[bucket] = h.latencies[bucket] + 1,
        window_end = case when h.window_end < now() then now() + interval '60 s' else h.window_end end,
        window_successes = case when h.window_end < now() then 0 else h.window_successes end + 1 - failed,
        window_failures = case when h.window_end < now() then 0 else h.window_failures end + failed,
        state = case
            when h.state = 'h' and failed = 1 then 'o'
            when h.state = 'h' and h.recovered >= 2 then 'c'
            when h.state = 'c' and failed = 1 and h.window_end >= now() and h.window_failures >= 4
                and (h.window_failures + 1) >= 0.01 * (h.window_failures + h.window_successes + 1) then 'o'
            else h.state
        end,
        open_until = case
            when failed = 1 and h.state <> 'o' then now() + interval '60 s'
            else h.open_until
        end,
        probes = case h.state when 'h' then h.probes - 1 else h.probes end,
        recovered = case when h.state = 'h' and failed = 0 then h.recovered + 1 else h.recovered end
    where h.extension_id = report.extension_id and h.version = report.version;
end;
$$;

create function report(
    extension_id text, version text, instance_id text, outcome text, latency_ms double precision
) returns void
language plpgsql
as $$
declare
    failed constant integer := case outcome when 'success' then 0 else 1 end;
    bucket constant integer := least(greatest(1 + floor(3 * ln(greatest(latency_ms, 0.1)) / ln(2.0::double precision))::integer, 1), 40);
begin
    perform plpgsql.report(report.extension_id, report.version, report.outcome, report.latency_ms);
    update plpgsql.instance_health h
    set success_count = h.success_count + 1 - failed,
        failure_count = h.failure_count + failed,
        last_success = case failed when 0 then now() else h.last_success end,
        last_failure = case failed when 1 then now() else h.last_failure end,
        last_latency_ms = report.latency_ms,
        latency_sum = h.latency_sum + report.latency_ms,
        latencies[bucket] = h.latencies[bucket] + 1
    where h.extension_id = report.extension_id and h.instance_id = report.instance_id;
end;
$$;

insert into extensions (id, type)
select n::text, 'pre' from generate_series(1, :extensions) n;

insert into versions (extension_id, version, subject, timeout_ms, retry, rules, place, total_weight)
select n::text, v.version, format('bench.service.%s.%s', n, v.version), 5000, 0, v.rules::jsonb, v.place, 100
from generate_series(1, :extensions) n,
    (values ('v1', '{}', 2), ('v2', '{"tenant_id": ["t1", "t2", "t3"]}', 1)) v (version, rules, place);

insert into instances (extension_id, instance_id, subject, weight, bound)
select n::text, i.instance_id, format('bench.service.%s.%s', n, i.instance_id), i.weight, i.bound
from generate_series(1, :extensions) n, (values ('a', 67, 67), ('b', 33, 100)) i (instance_id, weight, bound);

insert into health (extension_id, version)
select extension_id, version from versions;

insert into instance_health (extension_id, instance_id)
select extension_id, instance_id from instances;

-- It does what it says.
do $$
declare
    shares record;
begin
    assert (select version from plpgsql.decide('1', '{"tenant_id": "t2"}')) = 'v2', 'the rule matches';
    assert (select version from plpgsql.decide('1', '{"tenant_id": "t9"}')) = 'v1', 'the rule does not match';
    assert (select reason from plpgsql.decide('none', '{}')) = 'extension_not_found', 'it is not registered';
    select count(*) filter (where instance_id = 'a') as a, count(*) as n into shares
    from generate_series(1, 3000) n, lateral plpgsql.decide((n - n + 1)::text, '{}');
    assert shares.a between 0.6 * shares.n and 0.74 * shares.n, 'two of three calls go to the first instance';
    perform plpgsql.report('1', 'v2', 'timeout', 100) from generate_series(1, 5);
    assert (select version from plpgsql.decide('1', '{"tenant_id": "t2"}')) = 'v1', 'the breaker of v2 is open';
    update plpgsql.health set open_until = now() where extension_id = '1' and version = 'v2';
    assert (select reason from plpgsql.decide('1', '{"tenant_id": "t2"}')) = 'probe', 'it is half-open';
    perform plpgsql.decide('1', '{"tenant_id": "t2"}'), plpgsql.decide('1', '{"tenant_id": "t2"}');
    assert (select version from plpgsql.decide('1', '{"tenant_id": "t2"}')) = 'v1', 'three probes at once and no more';
    perform plpgsql.report('1', 'v2', 'success', 100) from generate_series(1, 3);
    assert (select reason from plpgsql.decide('1', '{"tenant_id": "t2"}')) = 'ok', 'it has recovered';
end;
$$;

truncate health;
insert into health (extension_id, version)
select extension_id, version from versions;
