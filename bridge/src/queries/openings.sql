-- Openings of circuit breakers after one event, up to another, by extension.
select e.extension_id::pg_catalog.text, pg_catalog.count(*)
from @extschema@.extension_breaker_events e
where e.id > $1 and e.id <= $2 and e.instance_id = '' and e.to_state = 'open'
group by 1
