-- Changes of the registry after one of them, by transactions older than another. What is older than an hour is no news; which policy
-- has changed is in values that a bridge may not read.
select a.id::pg_catalog.text, a.transaction_id::pg_catalog.text, a.changed_at::pg_catalog.text,
       pg_catalog.jsonb_build_object(
           'id', a.id, 'at', a.changed_at, 'extension_id', a.extension_id, 'table', a.table_name, 'action', a.action,
           'by', a.changed_by),
       case when a.table_name <> 'extensions' then 'extension_updated'
            when a.action = 'create' then 'extension_created'
            when a.action = 'delete' then 'extension_deleted'
            else 'extension_updated' end
from @extschema@.extension_audit_log a
where (a.transaction_id, a.changed_at, a.id) > ($1::pg_catalog.text::pg_catalog.xid8,
      $2::pg_catalog.text::pg_catalog.timestamptz, $3::pg_catalog.text::pg_catalog.uuid)
  and a.transaction_id < $4::pg_catalog.text::pg_catalog.xid8
  and a.changed_at > pg_catalog.now() - interval '1 hour'
  and a.table_name <> 'extension_policies'
order by a.transaction_id, a.changed_at, a.id
limit $5
