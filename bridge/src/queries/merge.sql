-- Outcomes that were gathered without Postgres. A document whose number has been applied is a no-op.
select m.merged, m.skipped
from @extschema@.ext_report_merge($1::pg_catalog.jsonb) m
