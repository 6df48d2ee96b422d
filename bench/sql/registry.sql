-- 100 extensions of two versions and two instances each: numbers as ids, so that pgbench can draw one.
insert into extensions (id, type, subject, timeout_ms)
select n, 'pre', 'bench.' || n || '.v1', 1000 from generate_series(1, 100) n;

insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
select n, v, 'bench.' || n || '.' || v, 1000, 0, case v when 'v1' then '{}' else '{"tenant_id": ["t1", "t2", "t3"]}' end::jsonb
from generate_series(1, 100) n, unnest(array['v1', 'v2']) v;

insert into extension_instances (extension_id, instance_id, subject, weight)
select n, i, 'bench.' || n || '.v1', w from generate_series(1, 100) n, (values ('one', 100), ('two', 50)) i (i, w);
