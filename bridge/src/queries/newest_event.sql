-- The newest event of circuit breakers; 0 without any.
select coalesce(pg_catalog.max(e.id), 0)
from @extschema@.extension_breaker_events e
