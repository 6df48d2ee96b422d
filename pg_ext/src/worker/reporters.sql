-- The last batch of each bridge whose counts are written down with it.
insert into @schema@.extension_reporters (reporter, seq, saved_at)
select r.reporter, r.seq, pg_catalog.now()
from unnest($1, $2) as r (reporter, seq)
on conflict (reporter) do update set seq = excluded.seq, saved_at = excluded.saved_at
