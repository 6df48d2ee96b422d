-- Declared health of every instance, for the series.
select i.extension_id::pg_catalog.text, i.instance_id::pg_catalog.text, i.health_status::pg_catalog.text
from @extschema@.extension_instances i
