-- Takes up calls that nobody has, or whose lease has run out, oldest first.
with free as (
    select i.id
    from @extschema@.extension_invocations i
    where i.finished_at is null and (i.leased_until is null or i.leased_until < pg_catalog.clock_timestamp())
    order by i.id
    limit $3
    for update skip locked
)
update @extschema@.extension_invocations i
set state = 'running', attempts = i.attempts + 1, leased_by = $1::pg_catalog.text,
    leased_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2::pg_catalog.float8)
from free
where i.id = free.id
returning i.id, i.attempts, i.extension_id::pg_catalog.text, i.payload, i.context
