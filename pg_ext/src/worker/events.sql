-- What happened to breakers and instances, in its order; returns a line for the server log for each.
with moved as (
    select m.*
    from unnest($1, $2, $3, $4, $5, $6, $7, $8, $9)
        with ordinality as m (uid, kind, name, at, from_state, to_state, reason, failures, requests, number)
),
written as (
    insert into @schema@.extension_breaker_events
        (at, extension_id, version, instance_id, from_state, to_state, reason, failures, requests, error_rate, by)
    select m.at, e.id, case when m.kind = 1 then m.name else '' end, case when m.kind = 2 then m.name else '' end,
        m.from_state, m.to_state, m.reason, m.failures, m.requests,
        case when m.requests > 0 then m.failures::double precision / m.requests end,
        case m.reason
            when 'reset' then (
                select r.changed_by
                from @schema@.extension_breaker_resets r
                where r.extension_id = e.id and r.version in ('', m.name)
                order by r.changed_at desc
                limit 1)
            when 'forced' then (
                select a.changed_by
                from @schema@.extension_audit_log a
                where a.extension_id = e.id
                    and a.old_values -> 'breaker_mode' is distinct from a.new_values -> 'breaker_mode'
                order by a.changed_at desc
                limit 1)
        end
    from moved m
    join @schema@.extensions e on e.uid = m.uid
    where @extensions@::regclass = @registry@::oid
    order by m.number
    returning extension_id, version, instance_id, from_state, to_state, reason, failures, requests
)
select case
    when instance_id <> '' then pg_catalog.format('instance "%s" of "%s": %s -> %s (%s%s)',
        instance_id, extension_id, from_state, to_state, reason,
        case when failures > 0 then pg_catalog.format(', %s failures in a row', failures) end)
    else pg_catalog.format('breaker of "%s" version "%s": %s -> %s (%s, %s failures of %s requests)',
        extension_id, version, from_state, to_state, reason, failures, requests)
    end
from written
