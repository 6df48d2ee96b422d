-- Every registered validator with its state, for GetValidatorsHealth.
select e.id::pg_catalog.text, e.enabled, h.circuit_breaker_state::pg_catalog.text, h.success_rate::pg_catalog.float8,
       h.p95_latency_ms::pg_catalog.float8, e.version::pg_catalog.text
from @extschema@.extensions e
left join @extschema@.extension_health h on h.extension_id = e.id
where e.type = 'validator'
order by e.id
