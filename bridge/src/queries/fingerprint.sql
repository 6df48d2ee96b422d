-- Changes with every committed change of the registry: of the number of rows, or of the transactions that wrote them.
select pg_catalog.string_agg(pg_catalog.concat_ws('/', t.rows, t.writers), ' ' order by t.place)
from (
    select 1, pg_catalog.count(*), pg_catalog.sum(e.xmin::pg_catalog.text::pg_catalog.int8) from @extschema@.extensions e
    union all
    select 2, pg_catalog.count(*), pg_catalog.sum(v.xmin::pg_catalog.text::pg_catalog.int8) from @extschema@.extension_versions v
    union all
    select 3, pg_catalog.count(*), pg_catalog.sum(i.xmin::pg_catalog.text::pg_catalog.int8) from @extschema@.extension_instances i
    union all
    select 4, pg_catalog.count(*), pg_catalog.sum(s.xmin::pg_catalog.text::pg_catalog.int8) from @extschema@.extension_health_settings s
    union all
    select 5, pg_catalog.count(*), pg_catalog.sum(p.xmin::pg_catalog.text::pg_catalog.int8) from @extschema@.extension_policies p
) t(place, rows, writers)
