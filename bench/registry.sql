-- The registry that is measured: `extensions` extensions, each of two versions and two instances that serve both.
-- Ids are numbers, so that pgbench can draw one. For psql, with the variables `extensions` and `timeout_ms`.
insert into extensions (id, type, subject, timeout_ms)
select n, 'pre', format('bench.service.%s', n), :timeout_ms
from generate_series(1, :extensions) n;

insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
select n, v.version, format('bench.service.%s.%s', n, v.version), :timeout_ms, 0, v.rules::jsonb
from generate_series(1, :extensions) n,
    (values ('v1', '{}'), ('v2', '{"tenant_id": ["t1", "t2", "t3"]}')) v (version, rules);

insert into extension_instances (extension_id, instance_id, subject, weight)
select n, i.instance_id, format('bench.service.%s.%s', n, i.instance_id), i.weight
from generate_series(1, :extensions) n, (values ('a', 67), ('b', 33)) i (instance_id, weight);
