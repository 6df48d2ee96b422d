-- From 0.1.0 to 0.2.0: what operators ask. Adds the views ext_top and extension_changes and the functions ext_policy_uses,
-- ext_restore and ext_advice; changes no table and no function that was there, but the list of rights.
\echo Use "ALTER EXTENSION ext_registry UPDATE TO '0.2.0'" to load this file. \quit

-- As in the install script: names are written out, operators are those of pg_catalog.
set local search_path = pg_catalog, pg_temp;

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

-- The rights, and their giving to whom has a level.
create or replace function @extschema@._ext_privileges(level text) returns table (privilege text, kind text, object name)
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

select @extschema@._ext_apply_grants();
