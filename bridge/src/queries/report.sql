-- Outcomes of a batch. A sequence number already applied is a no-op.
select r.applied, r.flushed_seq
from @extschema@.ext_report_many($1::pg_catalog.int8[], $2::pg_catalog.text[], $3::pg_catalog.float8[], $4::pg_catalog.int4[],
                                 $5::pg_catalog.text::pg_catalog.uuid, $6::pg_catalog.int8) r
