-- Documents read without being stored: what each means for every row it speaks of. ext_validate and ext_diff (62_validate.sql)
-- show it.
--
-- No rule is told a second time here: keys are those of 60_documents.sql; defaults and CHECKs are read from the catalog and
-- evaluated for the row that would be stored. So what is found is what ext_register and ext_import would say. Nothing is
-- written and no more than ACCESS SHARE is locked: all of this works in a read-only transaction and on a standby. Not parallel
-- safe where a check that raises is caught: that takes a subtransaction.

create type @extschema@._ext_reviewed as (
    path         text,
    object       text,
    extension_id text,
    name         text,
    -- The row as it is and as it would be, as documents have it; NULL: none.
    had          jsonb,
    would        jsonb,
    -- Or why it cannot be.
    problem      text,
    hint         text
);

comment on type @extschema@._ext_reviewed is 'What a document means for one row, or one problem with it.';

create function @extschema@._ext_rules_problems(rules jsonb) returns table (key text, problem text, hint text)
language c immutable strict parallel safe rows 1
as 'MODULE_PATHNAME', '_ext_rules_problems';

comment on function @extschema@._ext_rules_problems(jsonb) is
    'All for which _ext_check_rules would refuse rules, by their keys.';

create function @extschema@._ext_policy_problems(document jsonb) returns table (path text, problem text, hint text)
language c immutable strict parallel safe rows 1
as 'MODULE_PATHNAME', '_ext_policy_problems';

comment on function @extschema@._ext_policy_problems(jsonb) is
    'All for which _ext_check_policy would refuse a document, one for each item at most, by their places.';

create function @extschema@._ext_path(place text, key text) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return concat_ws('.', nullif(place, ''), case when key ~ '^[A-Za-z_]\w*$' then left(key, 100) else '"' || left(key, 100) || '"' end);
end;
$$;

comment on function @extschema@._ext_path(text, text) is 'Where a key of the object at place stands; place itself without a key.';

create function @extschema@._ext_would_be(target regclass, had jsonb, given jsonb) returns jsonb
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    expressions text;
    defaults jsonb;
    would jsonb;
begin
    select string_agg(format('%L, %s', k.name, pg_get_expr(d.adbin, d.adrelid)), ', ') into expressions
    from @extschema@._ext_document_keys(target) k
    join pg_attribute a on a.attrelid = target and a.attname = k.name
    join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum;
    execute format('select jsonb_build_object(%s)', expressions) into defaults;
    execute format('select to_jsonb(r) from jsonb_populate_record(null::%s, $1) r', target)
    into would
    using coalesce(had, defaults) || given;

    return (
        select jsonb_object_agg(
            k.name,
            case
                -- Triggers fill NULLs; but in the settings NULL switches a rule off.
                when would -> k.name = 'null' and target <> '@extschema@.extension_health_settings'::regclass
                    then coalesce(defaults -> k.name, 'null')
                else would -> k.name
            end)
        from @extschema@._ext_document_keys(target) k
    );
end;
$$;

comment on function @extschema@._ext_would_be(regclass, jsonb, jsonb) is
    'The row that _ext_put would make of had (NULL: none) and given, as documents have it.';

create function @extschema@._ext_row_problems(what text, target regclass, had jsonb, given jsonb)
returns table (path text, problem text, hint text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    good jsonb := given;
    row_type constant text := format('jsonb_populate_record(null::%s, $1)', target);
    would jsonb;
    checks text;
    passes boolean;
    item record;
begin
    -- All at once, which is enough for a good row.
    begin
        would := @extschema@._ext_would_be(target, had, given);
        select string_agg(format('(%s) is not false', pg_get_expr(c.conbin, c.conrelid)), ' and ') into checks
        from pg_constraint c
        where c.conrelid = target and c.contype = 'c';
        execute format('select %s from %s', coalesce(checks, 'true'), row_type) into passes using would;
        if passes then
            return;
        end if;
    exception
        when check_violation or invalid_text_representation or numeric_value_out_of_range or string_data_right_truncation then
            null;
    end;

    for item in
        select a.attname
        from pg_attribute a
        where a.attrelid = target and a.attnum > 0 and given ? a.attname
        order by a.attnum
    loop
        begin
            perform @extschema@._ext_would_be(target, had, jsonb_build_object(item.attname, given -> item.attname));
        exception
            when invalid_text_representation or numeric_value_out_of_range or string_data_right_truncation then
                get stacked diagnostics problem = message_text, hint = pg_exception_hint;
                path := item.attname;
                problem := format('%s: %s', what, problem);
                hint := coalesce(nullif(hint, ''), '\d+ of the table shows what its columns take.');
                return next;
                good := good - path;
        end;
    end loop;

    would := @extschema@._ext_would_be(target, had, good);
    for item in
        select
            c.conname,
            pg_get_expr(c.conbin, c.conrelid) as condition,
            (
                select a.attname from pg_attribute a
                where a.attrelid = target and a.attnum = any (c.conkey)
                order by given ? a.attname desc, a.attnum
                limit 1
            ) as attname
        from pg_constraint c
        where c.conrelid = target and c.contype = 'c'
        -- The order in which Postgres checks them.
        order by c.conname
    loop
        begin
            execute format('select (%s) is not false from %s', item.condition, row_type) into passes using would;
            problem := format('new row for relation %s violates check constraint %s',
                to_json((select c.relname from pg_class c where c.oid = target)), to_json(item.conname));
            hint := null;
        exception
            when check_violation then
                get stacked diagnostics problem = message_text, hint = pg_exception_hint;
                passes := false;
        end;
        if passes then
            continue;
        end if;
        -- A CHECK tells the first problem; within these there may be more.
        return query
        select d.path, format('%s: %s', what, d.problem), d.hint
        from (
            select @extschema@._ext_path(item.attname, nullif(p.key, '')), p.problem, p.hint
            from @extschema@._ext_rules_problems(would -> 'routing_rules') p
            where (target, item.attname) = ('@extschema@.extension_versions'::regclass, 'routing_rules')
            union all
            select concat_ws('.', item.attname, nullif(p.path, '')), p.problem, p.hint
            from @extschema@._ext_policy_problems(would -> 'document') p
            where (target, item.attname) = ('@extschema@.extension_policies'::regclass, 'document')
        ) d(path, problem, hint);
        if not found then
            path := item.attname;
            problem := format('%s: %s', what, problem);
            hint := coalesce(nullif(hint, ''), '\d+ of the table shows what its columns take.');
            return next;
        end if;
    end loop;
end;
$$;

comment on function @extschema@._ext_row_problems(text, regclass, jsonb, jsonb) is
    'Why the table would refuse what _ext_put makes of had and given: values that do not fit their columns, and CHECKs.';

create function @extschema@._ext_review_row(
    item @extschema@._ext_reviewed,
    what text,
    target regclass,
    required text[],
    given jsonb,
    more jsonb default '{}',
    inherited jsonb default '{}'
) returns setof @extschema@._ext_reviewed
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    known jsonb := given;
    -- (Records, for whose fields pgspot knows assignments.)
    wrong record := item;
    good record := item;
    found_one record;
    sound boolean := true;
begin
    wrong.had := null;
    for found_one in select p.* from @extschema@._ext_document_problems(what, given, target, required, more) p loop
        sound := false;
        wrong.path := @extschema@._ext_path(item.path, found_one.key);
        wrong.problem := found_one.problem;
        wrong.hint := found_one.hint;
        return next wrong;
        if found_one.key is null then
            return;
        end if;
        known := known - found_one.key;
    end loop;

    known := @extschema@._ext_without_nulls(known - array(select jsonb_object_keys(more)), target);
    if item.had is null then
        known := inherited || known;
    end if;
    for found_one in select p.* from @extschema@._ext_row_problems(what, target, item.had, known) p loop
        sound := false;
        wrong.path := concat_ws('.', nullif(item.path, ''), found_one.path);
        wrong.problem := found_one.problem;
        wrong.hint := found_one.hint;
        return next wrong;
    end loop;

    if sound then
        good.would := @extschema@._ext_would_be(target, item.had, known);
        if item.had is not null then
            good.had := @extschema@._ext_would_be(target, item.had, '{}');
        end if;
        return next good;
    end if;
end;
$$;

comment on function @extschema@._ext_review_row(@extschema@._ext_reviewed, text, regclass, text[], jsonb, jsonb, jsonb) is
    'All problems with what a document says of one row, or else the row that it would be.';

create function @extschema@._ext_review_extension(place text, doc jsonb) returns setof @extschema@._ext_reviewed
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    owner constant text := case when jsonb_typeof(doc -> 'id') = 'string' then doc ->> 'id' end;
    what constant text := concat_ws(' ', 'extension', to_json(left(owner, 100)));
    item record;
    inherited jsonb := '{}';
    list record;
    stored jsonb;
begin
    for item in
        select r.*
        from @extschema@._ext_review_row(
            row (place, 'extension', owner, null, (select to_jsonb(e) from @extschema@.extensions e where e.id = owner),
                null, null, null)::@extschema@._ext_reviewed,
            what, '@extschema@.extensions', array['id', 'type', 'subject'], doc,
            '{"health": "object", "versions": "array", "instances": "array"}') r
    loop
        return next item;
        if item.would is not null then
            -- A new version has the extension's patience, unless it says otherwise.
            inherited := jsonb_build_object('timeout_ms', item.would -> 'timeout_ms', 'retry', item.would -> 'retry');
        end if;
    end loop;
    if doc is null or jsonb_typeof(doc) <> 'object' then
        return;
    end if;

    item := row (
        @extschema@._ext_path(place, 'health'), 'health', owner, null,
        (select to_jsonb(s) from @extschema@.extension_health_settings s where s.extension_id = owner), null, null, null
    )::@extschema@._ext_reviewed;
    if jsonb_typeof(doc -> 'health') = 'object' then
        return query
        select r.*
        from @extschema@._ext_review_row(
            item, what || ' health', '@extschema@.extension_health_settings', '{}', doc -> 'health') r;
    elsif jsonb_typeof(doc -> 'health') = 'null' and item.had is not null then
        item.had := @extschema@._ext_would_be('@extschema@.extension_health_settings', item.had, '{}');
        return next item;
    end if;

    for list in
        select l.*, format('%s %s', what, l.object) as what
        from (
            values
                ('versions', 'version', 'version', '@extschema@.extension_versions'::regclass, inherited),
                ('instances', 'instance', 'instance_id', '@extschema@.extension_instances'::regclass, '{}')
        ) l(name, object, key, target, inherited)
        where jsonb_typeof(doc -> l.name) = 'array'
    loop
        return query
        select
            @extschema@._ext_path(format('%s[%s]', @extschema@._ext_path(place, list.name), d.index), list.key),
            list.object, owner, null, null::jsonb, null::jsonb, d.problem, d.hint
        from @extschema@._ext_duplicates(list.what, doc -> list.name, list.key) d;

        select coalesce(jsonb_object_agg(s.name, s.had), '{}') into stored
        from (
            select v.version, to_jsonb(v) from @extschema@.extension_versions v
            where v.id = owner and list.object = 'version'
            union all
            select i.instance_id, to_jsonb(i) from @extschema@.extension_instances i
            where i.extension_id = owner and list.object = 'instance'
        ) s(name, had);

        -- What the list does not name is deleted.
        return query
        select
            @extschema@._ext_path(place, list.name), list.object, owner, s.key,
            @extschema@._ext_would_be(list.target, s.value, '{}'), null::jsonb, null, null
        from jsonb_each(stored) s
        where not doc -> list.name @> jsonb_build_array(jsonb_build_object(list.key, s.key))
        order by s.key collate "C";

        return query
        select r.*
        from jsonb_array_elements(doc -> list.name) with ordinality i
        cross join lateral @extschema@._ext_review_row(
            row (
                format('%s[%s]', @extschema@._ext_path(place, list.name), i.ordinality - 1), list.object, owner,
                i.value ->> list.key, stored -> (i.value ->> list.key), null, null, null
            )::@extschema@._ext_reviewed,
            concat_ws(' ', list.what, left((i.value -> list.key)::text, 100)),
            list.target, array[list.key, 'subject'], i.value, '{}', list.inherited) r;
    end loop;
end;
$$;

comment on function @extschema@._ext_review_extension(text, jsonb) is
    'What a document of one extension, as ext_register takes it, means for every row it speaks of.';

create function @extschema@._ext_review(doc jsonb) returns setof @extschema@._ext_reviewed
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    given jsonb;
begin
    if doc is null or jsonb_typeof(doc) <> 'object' or not doc ?| array['extensions', 'policies'] then
        return query select r.* from @extschema@._ext_review_extension('', doc) r;
        return;
    end if;

    return query
    select p.key, 'document', null, null, null::jsonb, null::jsonb, p.problem, p.hint
    from @extschema@._ext_document_problems(
        'the document', doc, null, '{}', '{"extensions": "array", "policies": "array"}') p;

    given := case when jsonb_typeof(doc -> 'extensions') = 'array' then doc -> 'extensions' else '[]' end;
    return query
    select format('extensions[%s].id', d.index), 'extension', null, null, null::jsonb, null::jsonb, d.problem, d.hint
    from @extschema@._ext_duplicates('extension', given, 'id') d;
    return query
    select r.*
    from jsonb_array_elements(given) with ordinality i
    cross join lateral @extschema@._ext_review_extension(format('extensions[%s]', i.ordinality - 1), i.value) r;

    given := case when jsonb_typeof(doc -> 'policies') = 'array' then doc -> 'policies' else '[]' end;
    return query
    select format('policies[%s].policy_id', d.index), 'policy', null, null, null::jsonb, null::jsonb, d.problem, d.hint
    from @extschema@._ext_duplicates('policy', given, 'tenant_id', 'policy_id') d;
    return query
    select r.*
    from jsonb_array_elements(given) with ordinality i
    cross join lateral @extschema@._ext_review_row(
        row (
            format('policies[%s]', i.ordinality - 1), 'policy', null,
            (i.value ->> 'tenant_id') || '/' || (i.value ->> 'policy_id'),
            (
                select to_jsonb(p) from @extschema@.extension_policies p
                where (p.tenant_id, p.policy_id) = (i.value ->> 'tenant_id', i.value ->> 'policy_id')
            ),
            null, null, null
        )::@extschema@._ext_reviewed,
        concat_ws(' ', 'policy', left((i.value -> 'tenant_id')::text, 100), left((i.value -> 'policy_id')::text, 100)),
        '@extschema@.extension_policies', array['tenant_id', 'policy_id', 'document'], i.value) r;
end;
$$;

comment on function @extschema@._ext_review(jsonb) is
    'What a document means for every row it speaks of: of one extension, as ext_register takes it, or, where it has the key extensions or policies, a whole one, as ext_import does.';
