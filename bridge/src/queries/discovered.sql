-- The instances that registered themselves.
select i.extension_id::pg_catalog.text, i.instance_id::pg_catalog.text, i.subject::pg_catalog.text
from @extschema@.extension_instances i
where i.metadata @> '{"discovered": true}'
