-- What a restore with `pg_dump --disable-triggers`, or ALTER TABLE ... DISABLE TRIGGER, leaves behind.

create function @extschema@.ext_repair() returns table (relation regclass, trigger name, was text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    amiss record;
begin
    for amiss in select t.relation, t.name, t.always, t.enabled from @extschema@._ext_triggers_amiss() t order by 1, 2 loop
        if amiss.enabled = 'missing' then
            raise exception using
                errcode = 'undefined_object',
                message = format('trigger %I of %s is missing', amiss.name, amiss.relation),
                hint = 'Only CREATE EXTENSION brings it back: dump the data, DROP EXTENSION ext_registry CASCADE, restore the dump.';
        end if;
        execute format(
            'alter table %s enable %s trigger %I',
            amiss.relation,
            case when amiss.always then 'always' end,
            amiss.name
        );
        relation := amiss.relation;
        trigger := amiss.name;
        was := amiss.enabled;
        return next;
    end loop;
    -- Rows may have come while nobody was told of them, and grants while nobody gave them.
    update @extschema@.extension_registry_grants set granted_at = granted_at;
    perform @extschema@._ext_reload();
end;
$$;

comment on function @extschema@.ext_repair() is
    'Sets the triggers of the registry right where a restore with --disable-triggers has left them off, gives the recorded levels once more, and makes every session read the registry anew. Returns what was not as it must be. For the owner of the extension.';
