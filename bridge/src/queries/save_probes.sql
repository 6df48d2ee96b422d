-- Writes the health of instances whose declared health is still what it was. Rows that somebody holds are left out.
with seen as (
    select s.extension_id, s.instance_id, s.was, s.status
    from rows from (
        pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]),
        pg_catalog.unnest($3::pg_catalog.text[]), pg_catalog.unnest($4::pg_catalog.text[])
    ) s(extension_id, instance_id, was, status)
), free as (
    select s.extension_id, s.instance_id, s.was, s.status
    from @extschema@.extension_instances i
    join seen s on i.extension_id = s.extension_id and i.instance_id = s.instance_id and i.health_status = s.was
    for no key update of i skip locked
)
update @extschema@.extension_instances i
set health_status = free.status, last_health_check = pg_catalog.clock_timestamp()
from free
where i.extension_id = free.extension_id and i.instance_id = free.instance_id
returning i.extension_id::pg_catalog.text, i.instance_id::pg_catalog.text, free.was, i.health_status::pg_catalog.text
