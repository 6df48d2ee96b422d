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
