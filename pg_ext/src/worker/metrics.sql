-- Minute metrics of targets, as they stand.
insert into @schema@.extension_metrics
    (minute, extension_id, version, instance_id, latency,
     success, error, timeout, no_responders, invalid_response, cancelled, caller_error, circuit_open, retries)
select m.minute, e.id, case when m.kind = 1 then m.name else '' end, case when m.kind = 2 then m.name else '' end,
    m.latency::@schema@.hdr,
    m.success, m.error, m.timeout, m.no_responders, m.invalid_response, m.cancelled, m.caller_error, m.circuit_open, m.retries
from unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    as m (uid, kind, name, minute, latency, success, error, timeout, no_responders, invalid_response, cancelled, caller_error,
        circuit_open, retries)
join @schema@.extensions e on e.uid = m.uid
where @extensions@::regclass = @registry@::oid
order by m.minute, e.id, m.kind, m.name
on conflict (minute, extension_id, version, instance_id) do update
    set latency = excluded.latency, success = excluded.success, error = excluded.error, timeout = excluded.timeout,
        no_responders = excluded.no_responders, invalid_response = excluded.invalid_response, cancelled = excluded.cancelled,
        caller_error = excluded.caller_error, circuit_open = excluded.circuit_open, retries = excluded.retries
