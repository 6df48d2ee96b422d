-- Documents: the registry as JSON, in and out. One document per extension, as in fixtures/extensions.
--
-- A document speaks for the keys that it has: what it leaves out stays as it is in an existing row and takes the default in
-- a new one. The lists versions and instances are whole where they are given: rows that they do not name are removed;
-- health: null removes the stored settings. Keys are the columns of the tables without the bookkeeping. What is wrong with a
-- document is error 22023 naming extension, key and value, and nothing of it is stored. (The small functions are plpgsql
-- because it keeps their plans: they run for every row.)

create view @extschema@._ext_documents as
select
    e.id,
    (to_jsonb(e) - array['created_at', 'updated_at', 'created_by', 'updated_by', 'uid'])
        || jsonb_build_object(
            'health', (
                select to_jsonb(s) - array['extension_id', 'updated_at']
                from @extschema@.extension_health_settings s
                where s.extension_id = e.id
            ),
            'versions', coalesce((
                select jsonb_agg(to_jsonb(v) - array['id', 'created_at', 'created_by'] order by v.version)
                from @extschema@.extension_versions v
                where v.id = e.id
            ), '[]'),
            'instances', coalesce((
                select jsonb_agg(
                    to_jsonb(i) - array['extension_id', 'last_health_check', 'created_at', 'updated_at'] order by i.instance_id)
                from @extschema@.extension_instances i
                where i.extension_id = e.id
            ), '[]')
        ) as document
from @extschema@.extensions e;

comment on view @extschema@._ext_documents is 'Every extension as a document.';

create function @extschema@.ext_export() returns jsonb
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'extensions', coalesce((select jsonb_agg(d.document order by d.id) from @extschema@._ext_documents d), '[]'),
        'policies', coalesce((
            select jsonb_agg(to_jsonb(p) - array['created_at', 'updated_at'] order by p.tenant_id, p.policy_id)
            from @extschema@.extension_policies p
        ), '[]'))
$$;

comment on function @extschema@.ext_export() is
    'The registry and the policies as one document, which ext_import reads.';

create function @extschema@._ext_document_keys(target regclass)
returns table (name text, json_type text, nullable boolean)
language plpgsql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select
        a.attname::text,
        case t.typcategory when 'B' then 'boolean' when 'N' then 'number' when 'S' then 'string' end,
        not a.attnotnull
    from pg_attribute a
    join pg_type t on t.oid = a.atttypid
    where a.attrelid = target
        and a.attnum > 0
        and not a.attisdropped
        and a.atttypid <> 'timestamptz'::regtype
        and a.attname not in ('uid', 'created_by', 'updated_by')
        -- The owner's id, which is given by where the document stands.
        and not exists (
            select from pg_constraint c where c.conrelid = target and c.contype = 'f' and a.attnum = any (c.conkey));
end;
$$;

comment on function @extschema@._ext_document_keys(regclass) is
    'The keys of a document about a row of this table, and the JSON type that each must have (NULL: any, jsonb''s own check decides).';

create function @extschema@._ext_document_problems(
    what text,
    document jsonb,
    target regclass,
    required text[],
    more jsonb default '{}'
) returns table (key text, problem text, hint text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    -- Once for all problems, and of a length that fits a message.
    place_name constant text := left(what, 300);
    needed constant text := format('%s must be there.', left(array_to_string(required, ', '), 1000));
    keys constant text := format('The keys are %s.', left((
        select string_agg(k.name, ', ' order by k.name)
        from (
            select d.name::text from @extschema@._ext_document_keys(target) d
            union all
            select m.key from jsonb_object_keys(more) m(key)
        ) k
    ), 1000));
begin
    return query
    with known as (
        select k.name, k.json_type from @extschema@._ext_document_keys(target) k
        union all
        select m.key, m.value from jsonb_each_text(more) m
    ),
    problems (place, key, problem, hint) as (
        select
            0,
            null,
            format('%s must be a JSON object, not %s', place_name, coalesce(left(document::text, 100), 'NULL')),
            'SELECT jsonb_pretty(ext_export()); shows the shape of documents.'
        where document is null or jsonb_typeof(document) <> 'object'
        union all
        select
            0,
            given.key,
            case
                when known.name is null then format('%s: unknown key %s', place_name, to_json(left(given.key, 100)))
                else format('%s: %s cannot be %s', place_name, given.key, left(given.value::text, 100))
            end,
            case
                when known.name is null then keys
                else format('Give it as JSON %s, or leave it out.', known.json_type)
            end
        from jsonb_each(case when jsonb_typeof(document) = 'object' then document end) given
        left join known on known.name = given.key
        where known.name is null
            or jsonb_typeof(given.value) not in ('null', known.json_type)
        union all
        select
            r.place::integer,
            r.name,
            format('%s: %s is missing', place_name, left(r.name, 100)),
            needed
        from unnest(required) with ordinality r(name, place)
        where jsonb_typeof(document) = 'object' and coalesce(document -> r.name, 'null') = 'null'
    )
    select p.key, p.problem, p.hint from problems p order by p.place, p.key collate "C";
end;
$$;

comment on function @extschema@._ext_document_problems(text, jsonb, regclass, text[], jsonb) is
    'Why document is not an object with known keys of the right types, the required ones among them; known are those of the table and of more (key -> type).';

create function @extschema@._ext_without_nulls(document jsonb, target regclass) returns jsonb
language plpgsql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return document - array(
        select k.name from @extschema@._ext_document_keys(target) k where not k.nullable and document -> k.name = 'null');
end;
$$;

comment on function @extschema@._ext_without_nulls(jsonb, regclass) is
    'The document without the nulls that its table cannot have: they are as if left out.';

create function @extschema@._ext_read_document(
    what text,
    document jsonb,
    target regclass,
    required text[],
    more jsonb default '{}'
) returns jsonb
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    wrong record;
begin
    select p.problem, p.hint into wrong
    from @extschema@._ext_document_problems(what, document, target, required, more) p
    limit 1;
    if found then
        raise exception using errcode = 'invalid_parameter_value', message = wrong.problem, hint = wrong.hint;
    end if;
    return coalesce(@extschema@._ext_without_nulls(document, target), document);
end;
$$;

comment on function @extschema@._ext_read_document(text, jsonb, regclass, text[], jsonb) is
    'Returns document without the nulls that its table cannot have. Raises 22023 if it has problems.';

create function @extschema@._ext_duplicates(what text, items jsonb, variadic keys text[])
returns table (index integer, problem text, hint text)
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with named as (
        select
            i.ordinality::integer - 1 as index,
            string_agg(to_json(left(i.value ->> k.key, 100))::text, ' ' order by k.ordinality) as shown,
            array_agg(i.value ->> k.key order by k.ordinality) as name
        from jsonb_array_elements(case when jsonb_typeof(items) = 'array' then items end) with ordinality i
        cross join unnest(keys) with ordinality k(key, ordinality)
        group by i.ordinality
    )
    select n.index, format('%s %s is there twice', what, n.shown), 'Each may be there once.'
    from named n
    where array_position(n.name, null) is null
        and exists (select from named earlier where earlier.name = n.name and earlier.index < n.index)
    order by n.index;
end;
$$;

comment on function @extschema@._ext_duplicates(text, jsonb, text[]) is
    'The items of a list that have the same keys as one before them.';

create function @extschema@._ext_check_unique(what text, items jsonb, variadic keys text[]) returns void
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    twice record;
begin
    select d.problem, d.hint into twice from @extschema@._ext_duplicates(what, items, variadic keys) d limit 1;
    if found then
        raise exception using errcode = 'invalid_parameter_value', message = twice.problem, hint = twice.hint;
    end if;
end;
$$;

comment on function @extschema@._ext_check_unique(text, jsonb, text[]) is
    'Raises 22023 if two items of a list have the same keys.';

create function @extschema@.ext_register(doc jsonb, expected_epoch bigint default null) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Documents need no advice on what an UPDATE does not do.
set client_min_messages = warning
as $$
declare
    name constant text := case when jsonb_typeof(doc -> 'id') = 'string' then doc ->> 'id' end;
    extension constant text := concat_ws(' ', 'extension', to_json(left(name, 100)));
    what text := extension;
    given jsonb;
    epoch bigint;
    item jsonb;
    gone text;
    reason text;
    detail text;
    hint text;
begin
    given := @extschema@._ext_read_document(extension, doc, '@extschema@.extensions', array['id', 'type', 'subject'],
        '{"health": "object", "versions": "array", "instances": "array"}');

    if expected_epoch is not null then
        -- Locked, so that nobody changes what is overwritten between this look and the end of the transaction.
        perform from @extschema@.extensions e where e.id = name for update;
        if doc ? 'health' then
            perform from @extschema@.extension_health_settings s where s.extension_id = name for update;
        end if;
        if doc ? 'versions' then
            perform from @extschema@.extension_versions v where v.id = name for update;
        end if;
        if doc ? 'instances' then
            perform from @extschema@.extension_instances i where i.extension_id = name for update;
        end if;
        epoch := @extschema@._ext_epoch(name);
        if epoch is distinct from expected_epoch then
            raise exception using
                errcode = 'serialization_failure',
                message = format('%s has changed: its epoch is %s, not %s',
                    extension, coalesce(epoch::text, 'none'), expected_epoch),
                hint = 'Read it again (ext_lookup shows the epoch), then register with the new epoch.';
        end if;
    end if;

    begin
        perform @extschema@._ext_put('@extschema@.extensions', jsonb_build_object('id', name),
            given - array['health', 'versions', 'instances']);

        what := extension || ' health';
        if jsonb_typeof(doc -> 'health') = 'object' then
            item := @extschema@._ext_read_document(what, doc -> 'health', '@extschema@.extension_health_settings', '{}');
            perform @extschema@._ext_put(
                '@extschema@.extension_health_settings', jsonb_build_object('extension_id', name), item);
        elsif doc ? 'health' and exists (
            select from @extschema@.extension_health_settings s where s.extension_id = name
        ) then
            delete from @extschema@.extension_health_settings s where s.extension_id = name;
        end if;

        if jsonb_typeof(doc -> 'versions') = 'array' then
            perform @extschema@._ext_check_unique(extension || ' version', doc -> 'versions', 'version');
            for gone in
                select v.version from @extschema@.extension_versions v
                where v.id = name and not doc -> 'versions' @> jsonb_build_array(jsonb_build_object('version', v.version))
            loop
                delete from @extschema@.extension_versions v where v.id = name and v.version = gone;
            end loop;
            for item in select i.value from jsonb_array_elements(doc -> 'versions') i loop
                what := concat_ws(' ', extension, 'version', left((item -> 'version')::text, 100));
                item := @extschema@._ext_read_document(what, item,
                    '@extschema@.extension_versions', array['version', 'subject']);
                if not exists (
                    select from @extschema@.extension_versions v where v.id = name and v.version = item ->> 'version'
                ) then
                    -- A new version has the extension's patience, unless it says otherwise.
                    item := (
                        select jsonb_build_object('timeout_ms', e.timeout_ms, 'retry', e.retry)
                        from @extschema@.extensions e
                        where e.id = name
                    ) || item;
                end if;
                perform @extschema@._ext_put('@extschema@.extension_versions',
                    jsonb_build_object('id', name, 'version', item -> 'version'), item);
            end loop;
        end if;

        if jsonb_typeof(doc -> 'instances') = 'array' then
            perform @extschema@._ext_check_unique(extension || ' instance', doc -> 'instances', 'instance_id');
            for gone in
                select i.instance_id from @extschema@.extension_instances i
                where i.extension_id = name
                    and not doc -> 'instances' @> jsonb_build_array(jsonb_build_object('instance_id', i.instance_id))
            loop
                delete from @extschema@.extension_instances i where i.extension_id = name and i.instance_id = gone;
            end loop;
            for item in select i.value from jsonb_array_elements(doc -> 'instances') i loop
                what := concat_ws(' ', extension, 'instance', left((item -> 'instance_id')::text, 100));
                item := @extschema@._ext_read_document(what, item,
                    '@extschema@.extension_instances', array['instance_id', 'subject']);
                perform @extschema@._ext_put('@extschema@.extension_instances',
                    jsonb_build_object('extension_id', name, 'instance_id', item -> 'instance_id'), item);
            end loop;
        end if;
    exception
        -- What the tables refuse, said of the document.
        when check_violation or invalid_text_representation or numeric_value_out_of_range or string_data_right_truncation then
            get stacked diagnostics
                reason = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
            raise exception using
                errcode = 'invalid_parameter_value',
                message = format('%s: %s', what, reason),
                detail = detail,
                hint = coalesce(nullif(hint, ''), '\d+ of the table shows what its columns take.');
    end;

    return @extschema@._ext_epoch(name);
end;
$$;

comment on function @extschema@.ext_register(jsonb, bigint) is
    'Registers one extension as its document says, versions, instances and health settings included; returns the epoch. With expected_epoch: only if it is that still, else error 40001.';

create function @extschema@.ext_import(doc jsonb, out extensions integer, out policies integer) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    item jsonb;
    what text;
    reason text;
    detail text;
    hint text;
begin
    perform @extschema@._ext_read_document('the document', doc, null, '{}', '{"extensions": "array", "policies": "array"}');
    extensions := 0;
    policies := 0;
    if jsonb_typeof(doc -> 'extensions') = 'array' then
        perform @extschema@._ext_check_unique('extension', doc -> 'extensions', 'id');
        for item in select i.value from jsonb_array_elements(doc -> 'extensions') i loop
            perform @extschema@.ext_register(item);
            extensions := extensions + 1;
        end loop;
    end if;
    if jsonb_typeof(doc -> 'policies') = 'array' then
        perform @extschema@._ext_check_unique('policy', doc -> 'policies', 'tenant_id', 'policy_id');
        for item in select i.value from jsonb_array_elements(doc -> 'policies') i loop
            what := concat_ws(' ', 'policy', left((item -> 'tenant_id')::text, 100), left((item -> 'policy_id')::text, 100));
            item := @extschema@._ext_read_document(what, item, '@extschema@.extension_policies',
                array['tenant_id', 'policy_id', 'document']);
            begin
                perform @extschema@._ext_put('@extschema@.extension_policies',
                    jsonb_build_object('tenant_id', item -> 'tenant_id', 'policy_id', item -> 'policy_id'), item);
            exception
                when check_violation or string_data_right_truncation then
                    get stacked diagnostics
                        reason = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
                    raise exception using
                        errcode = 'invalid_parameter_value',
                        message = format('%s: %s', what, reason),
                        detail = detail,
                        hint = coalesce(nullif(hint, ''), '\d+ of the table shows what its columns take.');
            end;
            policies := policies + 1;
        end loop;
    end if;
end;
$$;

comment on function @extschema@.ext_import(jsonb) is
    'Registers the extensions and writes the policies of a document as ext_export gives it, in one transaction; what it does not name stays. Returns how many there were.';
