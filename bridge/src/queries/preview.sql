-- Decisions of a batch, without side effects.
select d.ordinality, d.allowed, d.reason, d.retry_after_ms, d.type, d.version, d.instance_id, d.subject,
       d.timeout_ms, d.retry, d.config, 0::pg_catalog.int8 as ticket
from @extschema@.ext_preview($1::pg_catalog.text[], $2::pg_catalog.jsonb[]) d
