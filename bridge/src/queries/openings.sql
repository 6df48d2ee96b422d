-- Openings of circuit breakers after an event, by extension, and the newest event seen.
select e.extension_id::pg_catalog.text, pg_catalog.count(*) filter (where e.to_state = 'open'), pg_catalog.max(e.id)
from @extschema@.extension_breaker_events e
where e.id > $1 and e.instance_id = ''
group by 1
