-- What the bridge must know of extensions beside decisions.
select e.id::pg_catalog.text,
       coalesce(e.metadata -> 'idempotent' = 'true'::pg_catalog.jsonb, false),
       coalesce(e.balancing, '')::pg_catalog.text
from @extschema@.extensions e
where e.id = any ($1::pg_catalog.text[])
