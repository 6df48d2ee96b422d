-- Where the extension lives, and its version.
select n.nspname::text, e.extversion::text
from pg_catalog.pg_extension e
join pg_catalog.pg_namespace n on n.oid = e.extnamespace
where e.extname = 'ext_registry'
