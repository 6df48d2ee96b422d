-- Removes instances that registered themselves, unless they have changed or somebody holds them.
with free as (
    select i.extension_id, i.instance_id
    from @extschema@.extension_instances i
    join rows from (
        pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]),
        pg_catalog.unnest($3::pg_catalog.text[])
    )
        g(extension_id, instance_id, subject)
        on i.extension_id = g.extension_id and i.instance_id = g.instance_id and i.subject = g.subject
    where i.metadata @> '{"discovered": true}'
    for update of i skip locked
)
delete from @extschema@.extension_instances i
using free
where i.extension_id = free.extension_id and i.instance_id = free.instance_id
returning i.extension_id::pg_catalog.text, i.instance_id::pg_catalog.text
