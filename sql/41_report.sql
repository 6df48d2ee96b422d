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
