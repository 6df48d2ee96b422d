-- Rows from JSON, for whatever writes a row of which it knows some columns (extension_health, documents).

-- Columns that do not differ are not assigned: that needs no right to them, and causes neither audit nor invalidation.
create function @extschema@._ext_put(target regclass, key jsonb, document jsonb) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    given constant jsonb := document || key;
    same_row constant text := (
        select string_agg(format('t.%1$I = d.%1$I', k.name), ' and ') from jsonb_object_keys(key) k(name));
    columns text;
    had jsonb;
    want jsonb;
    written bigint;
begin
    -- Between the look and the write somebody else may insert or delete the row; then once more.
    for attempt in 1 .. 5 loop
        execute format(
            'select to_jsonb(t), to_jsonb(jsonb_populate_record(t, $1))
            from %1$s t, jsonb_populate_record(null::%1$s, $1) d where %2$s',
            target, same_row)
        into had, want
        using given;

        if had is null then
            select string_agg(quote_ident(g.name), ', ') into columns from jsonb_object_keys(given) g(name);
            execute format(
                'insert into %1$s (%2$s) select %2$s from jsonb_populate_record(null::%1$s, $1) on conflict do nothing',
                target, columns)
            using given;
        else
            select string_agg(format('%1$I = d.%1$I', c.key), ', ') into columns
            from jsonb_each(want) c
            where c.value is distinct from had -> c.key;
            if columns is null then
                return;
            end if;
            execute format(
                'update %1$s t set %3$s from jsonb_populate_record(null::%1$s, $1) d where %2$s',
                target, same_row, columns)
            using want;
        end if;
        get diagnostics written = row_count;
        if written > 0 then
            return;
        end if;
    end loop;
    raise exception using
        errcode = 'serialization_failure',
        message = format('could not write %s of %s: it comes and goes', key, target),
        hint = 'Try again; if it stays so, look for a trigger on the table that suppresses the write.';
end;
$$;

comment on function @extschema@._ext_put(regclass, jsonb, jsonb) is
    'Inserts the row of that key as the document has it, or updates the columns that differ from it.';
