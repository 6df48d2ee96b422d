-- What became of calls, where this bridge still has them.
update @extschema@.extension_invocations i
set state = case when f.error is null then 'done' else 'failed' end, result = f.result, error = f.error,
    finished_at = pg_catalog.clock_timestamp(), leased_by = null, leased_until = null
from rows from (pg_catalog.unnest($2::pg_catalog.int8[]), pg_catalog.unnest($3::pg_catalog.int4[]),
                pg_catalog.unnest($4::pg_catalog.jsonb[]), pg_catalog.unnest($5::pg_catalog.jsonb[]))
     as f(id, attempt, result, error)
where i.id = f.id and i.attempts = f.attempt and i.leased_by = $1::pg_catalog.text and i.finished_at is null
