-- Breakers that refuse calls or let only probes pass.
select h.extension_id::pg_catalog.text, h.version::pg_catalog.text, coalesce(h.retry_after_ms, 0)::pg_catalog.int8
from @extschema@.extension_version_health h
where h.circuit_breaker_state <> 'closed' and h.breaker_mode = 'auto'
