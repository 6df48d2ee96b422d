-- What was written down of a target.
select s.snapshot
from @schema@.extension_target_state s
where s.uid = $1 and s.kind = $2 and s.name = $3
