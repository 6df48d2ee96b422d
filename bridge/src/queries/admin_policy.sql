-- One policy.
select p.document
from @extschema@.extension_policies p
where p.tenant_id = $1::pg_catalog.text and p.policy_id = $2::pg_catalog.text
