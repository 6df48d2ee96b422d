-- State of every extension, for the series.
select h.extension_id::pg_catalog.text, h.circuit_breaker_state::pg_catalog.text,
       h.success_rate::pg_catalog.float8, h.p95_latency_ms::pg_catalog.float8
from @extschema@.ext_health_all() h
