-- Decisions of a batch. Rows are matched by ordinality.
select d.ordinality, d.allowed, d.reason, d.retry_after_ms, d.type, d.version, d.instance_id, d.subject,
       d.timeout_ms, d.retry, d.config, d.ticket
from @extschema@.ext_select_many($1::pg_catalog.text[], $2::pg_catalog.jsonb[], $3::pg_catalog.jsonb) d
