-- Health of every extension, as one object.
select coalesce(pg_catalog.jsonb_object_agg(h.extension_id, pg_catalog.jsonb_build_object(
    'extension_id', h.extension_id,
    'status', case when h.success_rate is null then 'unknown' when h.success_rate >= 0.95 then 'healthy'
                   when h.success_rate >= 0.80 then 'degraded' else 'unhealthy' end,
    'success_rate', h.success_rate, 'success_count', h.success_count, 'failure_count', h.failure_count,
    'avg_latency_ms', h.avg_latency_ms, 'p50_latency_ms', h.p50_latency_ms, 'p95_latency_ms', h.p95_latency_ms,
    'p99_latency_ms', h.p99_latency_ms, 'last_latency_ms', h.last_latency_ms, 'latency_samples', h.latency_samples,
    'last_success', h.last_success, 'last_failure', h.last_failure,
    'circuit_breaker_state', h.circuit_breaker_state, 'circuit_breaker_opened_at', h.circuit_breaker_opened_at,
    'updated_at', h.updated_at)), '{}'::pg_catalog.jsonb)
from @extschema@.extension_health h
