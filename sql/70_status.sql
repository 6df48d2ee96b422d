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
            ('@extschema@.extension_policies', 'audit'),
            ('@extschema@.extension_policies', 'audit_truncate'),
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
