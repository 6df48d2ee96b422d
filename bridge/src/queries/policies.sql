-- Policies by tenant and id.
select p.tenant_id::pg_catalog.text, p.policy_id::pg_catalog.text, p.enabled, p.document
from @extschema@.extension_policies p
join rows from (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) as wanted(tenant_id, policy_id)
  on p.tenant_id = wanted.tenant_id and p.policy_id = wanted.policy_id
