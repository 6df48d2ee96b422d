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
comment on column @extschema@.extension_changes.changed_at is 'When, by the clock.';
comment on column @extschema@.extension_changes.extension_id is 'The extension; after a rename the new id; empty for a policy.';
comment on column @extschema@.extension_changes.action is 'create, update, delete, enable or disable.';
comment on column @extschema@.extension_changes.what is 'The extension itself, one of its versions or instances, its settings, or a policy.';
comment on column @extschema@.extension_changes.changes is 'Column: old -> new, for updates; of a JSON object the keys that differ, as column.key.';
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
