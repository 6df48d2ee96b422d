-- Circuit breaker of every extension, as one object.
select coalesce(pg_catalog.jsonb_object_agg(h.extension_id, pg_catalog.jsonb_build_object(
    'extension_id', h.extension_id, 'state', h.circuit_breaker_state, 'opened_at', h.circuit_breaker_opened_at,
    'failure_count', h.failure_count, 'error_rate', 1 - h.success_rate)), '{}'::pg_catalog.jsonb)
from @extschema@.extension_health h
