-- Registered extensions by type.
select e.type::pg_catalog.text, pg_catalog.count(*)
from @extschema@.extensions e
group by 1
