-- Transitions, in their order; returns a line for the server log for each.
with moved as (
    select m.*
    from unnest($1, $2, $3, $4, $5, $6, $7, $8)
        with ordinality as m (uid, name, at, from_state, to_state, reason, failures, requests, number)
),
written as (
    insert into @schema@.extension_breaker_events
        (at, extension_id, version, from_state, to_state, reason, failures, requests, error_rate)
    select m.at, e.id, m.name, m.from_state, m.to_state, m.reason, m.failures, m.requests,
        case when m.requests > 0 then m.failures::double precision / m.requests end
    from moved m
    join @schema@.extensions e on e.uid = m.uid
    where @extensions@::regclass = @registry@::oid
    order by m.number
    returning extension_id, version, from_state, to_state, reason, failures, requests
)
select pg_catalog.format('breaker of "%s" version "%s": %s -> %s (%s, %s failures of %s requests)',
    extension_id, version, from_state, to_state, reason, failures, requests)
from written
