-- Live state of targets, as it stands.
insert into @schema@.extension_target_state (uid, kind, name, snapshot, breaker_state, saved_at)
select s.uid, s.kind, s.name, s.snapshot, s.breaker_state, pg_catalog.now()
from unnest($1, $2, $3, $4, $5) as s (uid, kind, name, snapshot, breaker_state)
join @schema@.extensions e on e.uid = s.uid
where @extensions@::regclass = @registry@::oid
order by s.uid, s.kind, s.name
on conflict (uid, kind, name) do update
    set snapshot = excluded.snapshot, breaker_state = excluded.breaker_state, saved_at = excluded.saved_at
