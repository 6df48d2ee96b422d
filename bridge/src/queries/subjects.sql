-- Every subject that enabled extensions, versions and instances are registered under.
select e.id::pg_catalog.text, e.subject::pg_catalog.text from @extschema@.extensions e where e.enabled
union
select v.id::pg_catalog.text, v.subject::pg_catalog.text
from @extschema@.extension_versions v join @extschema@.extensions e on e.id = v.id where e.enabled and v.enabled
union
select i.extension_id::pg_catalog.text, i.subject::pg_catalog.text
from @extschema@.extension_instances i join @extschema@.extensions e on e.id = i.extension_id where e.enabled and i.enabled
