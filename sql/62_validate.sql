-- Before a document is registered: what is wrong with it (ext_validate), and what it would change (ext_diff).

create function @extschema@._ext_doubts(reviewed @extschema@._ext_reviewed[])
returns table (place bigint, path text, problem text, hint text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with item as (
        select r.*, format('extension %s', to_json(r.extension_id)) as extension
        from unnest(reviewed) with ordinality r(path, object, extension_id, name, had, would, problem, hint, place)
    ),
    sound as (
        select i.* from item i where i.would is not null
    ),
    extension as (
        select i.extension_id as id, i.would ->> 'type' as type, i.would ->> 'version' as version
        from item i
        where i.object = 'extension' and i.extension_id is not null
        union all
        select e.id, e.type, e.version
        from @extschema@.extensions e
        where not exists (select from item i where i.object = 'extension' and i.extension_id = e.id)
    ),
    version as (
        select e.id, e.version as name from extension e
        union
        select i.extension_id, i.name from item i where i.object = 'version' and (i.would is not null or i.problem is not null)
        union
        select v.id, v.version
        from @extschema@.extension_versions v
        where not exists (
            select from item i where i.object = 'version' and i.extension_id = v.id and i.name = v.version and i.would is null
        )
    ),
    stage (name, key, type) as (
        values
            ('pre', 'id', 'pre'),
            ('validators', 'id', 'validator'),
            ('providers', 'name', 'provider'),
            ('fallbacks', 'to', 'provider'),
            ('post', 'id', 'post')
    ),
    mention as (
        select
            p.place,
            case
                when jsonb_typeof(i.value) = 'string' then format('%s.document.%s[%s]', p.path, s.name, i.ordinality - 1)
                else format('%s.document.%s[%s].%s', p.path, s.name, i.ordinality - 1, s.key)
            end as path,
            format('policy %s %s: %s', p.would -> 'tenant_id', p.would -> 'policy_id', s.name) as stage,
            s.type,
            case when jsonb_typeof(i.value) = 'string' then i.value #>> '{}' else i.value ->> s.key end as id
        from sound p
        cross join stage s
        cross join jsonb_array_elements(
            case when jsonb_typeof(p.would #> array['document', s.name]) = 'array' then p.would #> array['document', s.name] end
        ) with ordinality i
        where p.object = 'policy' and p.would -> 'enabled' = 'true'
    )
    select
        v.place,
        @extschema@._ext_path(v.path || '.routing_rules', r.key),
        format('%s version %s: no request can reach it: the rule for %s is []', v.extension, to_json(v.name), to_json(left(r.key, 100))),
        'Give it "enabled": false if that is meant, else list the values that the rule shall match.'
    from sound v
    join extension e on e.id = v.extension_id
    cross join jsonb_each(v.would -> 'routing_rules') r
    -- (A row of the extension's own version lends its breaker to it, and need not be reached.)
    where v.object = 'version' and v.would -> 'enabled' = 'true' and v.name <> e.version and r.value = '[]'
    union all
    select
        v.place,
        v.path || '.rollout_percent',
        format('%s version %s: no request can reach it: its share is 0', v.extension, to_json(v.name)),
        'Give it "enabled": false if that is meant, else a rollout_percent above 0.'
    from sound v
    join extension e on e.id = v.extension_id
    where v.object = 'version' and v.would -> 'enabled' = 'true' and v.name <> e.version and v.would -> 'rollout_percent' = '0'
    union all
    select
        i.place,
        i.path || '.version',
        format('%s instance %s: no call can reach it: there is no version %s', i.extension, to_json(i.name), i.would -> 'version'),
        format('Use one of %s, or null for the version with the same subject.',
            (select string_agg(v.name, ', ' order by v.name) from version v where v.id = i.extension_id))
    from sound i
    where i.object = 'instance'
        and i.would -> 'enabled' = 'true'
        and i.would ->> 'version' is not null
        and not exists (select from version v where v.id = i.extension_id and v.name = i.would ->> 'version')
    union all
    select
        e.place,
        @extschema@._ext_path(e.path, 'metadata') || '.allowed_tenants',
        format('%s: every call is refused: allowed_tenants is %s', e.extension, left((e.would #> '{metadata,allowed_tenants}')::text, 100)),
        'Give it "enabled": false if that is meant, else list the tenants as strings; without allowed_tenants everybody may call.'
    from sound e
    where e.object = 'extension'
        and e.would -> 'enabled' = 'true'
        and e.would -> 'metadata' ? 'allowed_tenants'
        and (
            e.would #> '{metadata,allowed_tenants}' = '[]'
            or jsonb_typeof(e.would #> '{metadata,allowed_tenants}') <> 'array'
            or jsonb_path_exists(e.would, 'strict $.metadata.allowed_tenants[*] ? (@.type() != "string")', '{}', true)
        )
    union all
    select
        m.place,
        m.path,
        case
            when e.id is null then format('%s calls %s, which is not registered', m.stage, to_json(m.id))
            else format('%s calls %s, which is of type %s', m.stage, to_json(m.id), e.type)
        end,
        case
            when e.id is null then 'Register it, here or beforehand, or correct the name.'
            else format('An extension of type %s belongs there.', m.type)
        end
    from mention m
    left join extension e on e.id = m.id
    where e.id is null or e.type <> m.type;
end;
$$;

comment on function @extschema@._ext_doubts(@extschema@._ext_reviewed[]) is
    'What a sound document surely does not mean; place is that of the reviewed item.';

create function @extschema@.ext_validate(doc jsonb)
returns table (path text, severity text, problem text, hint text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    reviewed constant @extschema@._ext_reviewed[] := array(select r from @extschema@._ext_review(doc) r);
begin
    return query
    select f.path, f.severity, f.problem, f.hint
    from (
        select r.place, r.path, 'error' as severity, r.problem, r.hint
        from unnest(reviewed) with ordinality r(path, object, extension_id, name, had, would, problem, hint, place)
        where r.problem is not null
        union all
        select d.place, d.path, 'warning', d.problem, d.hint
        from @extschema@._ext_doubts(reviewed) d
    ) f
    order by f.place, f.path;
end;
$$;

comment on function @extschema@.ext_validate(jsonb) is
    'All that is wrong with a document for ext_register, or, where it has the key extensions or policies, for ext_import: error, it would be refused; warning, it would be stored but is surely not meant. No row: nothing.';

create function @extschema@.ext_diff(doc jsonb)
returns table (action text, object text, extension_id text, name text, key text, old jsonb, new jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    item @extschema@._ext_reviewed;
begin
    for item in select r.* from @extschema@._ext_review(doc) r loop
        if item.problem is not null then
            raise exception using
                errcode = 'invalid_parameter_value', message = item.problem, hint = item.hint;
        end if;
        object := item.object;
        extension_id := item.extension_id;
        name := item.name;
        if item.had is null or item.would is null then
            action := case when item.had is null then 'create' else 'delete' end;
            key := null;
            old := item.had;
            new := item.would;
            return next;
            continue;
        end if;
        action := 'update';
        for key, old, new in
            select w.key, item.had -> w.key, w.value
            from jsonb_each(item.would) w
            where w.value is distinct from item.had -> w.key
            order by w.key collate "C"
        loop
            return next;
        end loop;
    end loop;
end;
$$;

comment on function @extschema@.ext_diff(jsonb) is
    'What ext_register, or, where the document has the key extensions or policies, ext_import would change: a row for every key of an updated row, one for every created or deleted row. An error as theirs if the document is not valid.';
