-- What is too old or belongs to nothing.
with metrics as (
    delete from @schema@.extension_metrics where minute < pg_catalog.now() - pg_catalog.make_interval(mins => $1)
),
events as (
    delete from @schema@.extension_breaker_events where at < pg_catalog.now() - pg_catalog.make_interval(mins => $2)
),
reporters as (
    delete from @schema@.extension_reporters where saved_at < pg_catalog.now() - interval '7 days'
),
invocations as (
    delete from @schema@.extension_invocations where asked_at < pg_catalog.now() - interval '1 hour'
)
delete from @schema@.extension_target_state s
where not exists (select from @schema@.extensions e where e.uid = s.uid)
