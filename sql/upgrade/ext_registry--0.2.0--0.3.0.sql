-- From 0.2.0 to 0.3.0: changes of policies are in the audit log; ext_restore finds its entries by an index; ext_advice knows of
-- shares that a version does not get and of rules that contradict themselves.
\echo Use "ALTER EXTENSION ext_registry UPDATE TO '0.3.0'" to load this file. \quit

-- As in the install script: names are written out, operators are those of pg_catalog.
set local search_path = pg_catalog, pg_temp;

-- Few rows: renames, by the id that was given up.
create index extension_audit_log_renamed_idx
on @extschema@.extension_audit_log (coalesce(old_values ->> 'extension_id', old_values ->> 'id'))
where coalesce(old_values ->> 'extension_id', old_values ->> 'id') <> extension_id;

comment on column @extschema@.extension_audit_log.extension_id is 'The extension; empty for a policy, which is named in old_values and new_values.';

create or replace function @extschema@._ext_audit() returns trigger
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
        (coalesce(coalesce(new_row, old_row) ->> key_column, ''), action, old_row, new_row, session_user, clock_timestamp(),
            tg_table_name, outer_role, current_setting('application_name'), pg_current_xact_id());
    return null;
end;
$$;

comment on function @extschema@._ext_audit() is
    'Trigger: writes the change of a row into extension_audit_log; the argument names the column with the extension''s id, if there is one.';

create or replace function @extschema@._ext_audit_truncate() returns trigger
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
            select %1$s, 'delete', to_jsonb(t), session_user, clock_timestamp(), $1, $2,
                current_setting('application_name'), pg_current_xact_id()
            from %2$I.%3$I t
        $insert$,
        case when key_column is null then quote_literal('') else format('t.%I', key_column) end, tg_table_schema, tg_table_name)
    using tg_table_name, outer_role;
    return null;
end;
$$;

comment on function @extschema@._ext_audit_truncate() is
    'Trigger: writes every row that a TRUNCATE removes into extension_audit_log, as deleted.';

create trigger audit after insert or update or delete on @extschema@.extension_policies
    for each row execute function @extschema@._ext_audit();
create trigger audit_truncate before truncate on @extschema@.extension_policies
    for each statement execute function @extschema@._ext_audit_truncate();

create function @extschema@._ext_shortfalls(
    id text,
    out version text,
    out never_key text,
    out gets_percent double precision,
    out taken_by text,
    out taken_percent double precision
) returns setof record
language c volatile strict parallel safe rows 1
as 'MODULE_PATHNAME', '_ext_shortfalls';

comment on function @extschema@._ext_shortfalls(text) is
    'Versions that fewer requests reach than rollout_percent says: the key of their rules that no value satisfies, or the share they get and the version with the same rules that takes most of the rest.';

create or replace view @extschema@.extension_changes as
select
    a.changed_at,
    a.extension_id,
    a.action,
    case a.table_name
        when 'extensions' then 'extension'
        when 'extension_versions' then 'version ' || (coalesce(a.new_values, a.old_values) ->> 'version')
        when 'extension_instances' then 'instance ' || (coalesce(a.new_values, a.old_values) ->> 'instance_id')
        when 'extension_health_settings' then 'settings'
        when 'extension_policies' then concat_ws('/', 'policy ' || (coalesce(a.new_values, a.old_values) ->> 'tenant_id'),
            coalesce(a.new_values, a.old_values) ->> 'policy_id')
        else a.table_name
    end as what,
    case when a.old_values is not null and a.new_values is not null then (
        select string_agg(format('%s: %s -> %s', d.name, coalesce(d.was #>> '{}', 'null'), coalesce(d.became #>> '{}', 'null')),
            ', ' order by d.name)
        from (
            select coalesce(o.key, n.key) as name, o.value as was, n.value as became,
                coalesce(jsonb_typeof(o.value) = 'object' and jsonb_typeof(n.value) = 'object', false) as nested
            from jsonb_each(a.old_values) o
            full join jsonb_each(a.new_values) n on n.key = o.key
            where o.value is distinct from n.value
        ) k
        -- Of an object before and after, the keys in it that differ.
        cross join lateral (
            select k.name, k.was, k.became where not k.nested
            union all
            select k.name || '.' || coalesce(o.key, n.key), o.value, n.value
            from jsonb_each(case when k.nested then k.was end) o
            full join jsonb_each(case when k.nested then k.became end) n on n.key = o.key
            where o.value is distinct from n.value
        ) d
        where d.name not in ('updated_at', 'updated_by')
    ) end as changes,
    a.changed_by,
    nullif(a.changed_role, a.changed_by) as as_role,
    a.application_name,
    a.transaction_id
from @extschema@.extension_audit_log a;

comment on view @extschema@.extension_changes is
    'extension_audit_log as one reads it: what was changed, from what to what, by whom. Order it by changed_at.';
comment on column @extschema@.extension_changes.extension_id is 'The extension; after a rename the new id; empty for a policy.';
comment on column @extschema@.extension_changes.what is 'The extension itself, one of its versions or instances, its settings, or a policy.';
comment on column @extschema@.extension_changes.changes is 'Column: old -> new, for updates; of a JSON object the keys that differ, as column.key.';

-- The rows of one table that belonged to an extension then. The last entry until then says how a row was; where the log
-- begins later (rows that came by a dump without their log), the first entry after it does; else the row has not changed.
create or replace function @extschema@._ext_rows_at(target regclass, owner_column text, key_column text, id text, at timestamptz)
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
                where a.table_name = $3
                    and (a.extension_id = $1
                        -- As extension_audit_log_renamed_idx has it.
                        or (coalesce(a.old_values ->> 'extension_id', a.old_values ->> 'id') = $1
                            and coalesce(a.old_values ->> 'extension_id', a.old_values ->> 'id') <> a.extension_id))
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

create or replace function @extschema@._ext_triggers() returns table (relation regclass, name name, always boolean)
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

create or replace function @extschema@.ext_advice()
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
            ('viewer', 'execute', 'function', '_ext_shortfalls'),
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
