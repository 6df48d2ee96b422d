-- How far events are published on a subject; whoever is the first begins now.
with begun as (
    insert into @extschema@.extension_publications (subject, event_id, transaction_id)
    select $1::pg_catalog.text, coalesce((select pg_catalog.max(e.id) from @extschema@.extension_breaker_events e), 0),
           pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())
    on conflict (subject) do nothing
    returning event_id, transaction_id
)
select p.event_id, p.transaction_id::pg_catalog.text
from @extschema@.extension_publications p
where p.subject = $1::pg_catalog.text
union all
select b.event_id, b.transaction_id::pg_catalog.text from begun b
