-- Transitions after the last one that is published. What is older than an hour is no news.
select e.id,
       pg_catalog.jsonb_build_object(
           'id', e.id, 'at', e.at, 'extension_id', e.extension_id, 'version', nullif(e.version, ''),
           'instance_id', nullif(e.instance_id, ''), 'from_state', e.from_state, 'to_state', e.to_state, 'reason', e.reason,
           'failures', e.failures, 'requests', e.requests, 'error_rate', e.error_rate, 'by', e.by),
       e.instance_id <> ''
from @extschema@.extension_breaker_events e
where e.id > $1 and e.at > pg_catalog.now() - interval '1 hour'
order by e.id
limit $2
