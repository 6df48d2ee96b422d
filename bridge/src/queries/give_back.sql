-- Calls that were not made: free to any bridge after a moment.
update @extschema@.extension_invocations i
set state = 'queued', attempts = i.attempts - 1, leased_by = null,
    leased_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $4::pg_catalog.float8)
from rows from (pg_catalog.unnest($2::pg_catalog.int8[]), pg_catalog.unnest($3::pg_catalog.int4[])) as f(id, attempt)
where i.id = f.id and i.attempts = f.attempt and i.leased_by = $1::pg_catalog.text and i.finished_at is null
