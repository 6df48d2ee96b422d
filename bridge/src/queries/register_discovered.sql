-- Registers services as instances. A row that is there stays as it is, an extension that is gone gets none.
insert into @extschema@.extension_instances
    (extension_id, instance_id, subject, version, weight, metadata, health_status, last_health_check)
select o.extension_id, o.instance_id, o.subject, o.version, o.weight, o.metadata, 'healthy', pg_catalog.clock_timestamp()
from rows from (
    pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]),
    pg_catalog.unnest($3::pg_catalog.text[]), pg_catalog.unnest($4::pg_catalog.text[]),
    pg_catalog.unnest($5::pg_catalog.int4[]), pg_catalog.unnest($6::pg_catalog.jsonb[])
) o(extension_id, instance_id, subject, version, weight, metadata)
join @extschema@.extensions e on e.id = o.extension_id
on conflict do nothing
returning extension_id::pg_catalog.text, instance_id::pg_catalog.text, subject::pg_catalog.text
