-- Look-ups and health functions. Commits, and cleans up.

insert into extensions (id, type, subject, enabled) values
    ('guard', 'validator', 'beamline.ext.validate.guard.v1', true),
    ('mask', 'post', 'beamline.ext.post.mask.v1', false);
insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules) values
    ('guard', 'v1', 'beamline.ext.validate.guard.v1', 100, 0, '{}'),
    ('guard', 'v2', 'beamline.ext.validate.guard.v2', 80, 1, '{"tenant_id": ["t1"]}');
insert into extension_instances (extension_id, instance_id, subject, weight, health_status) values
    ('guard', 'a', 'beamline.ext.validate.guard.v1', 100, 'healthy'),
    ('guard', 'b', 'beamline.ext.validate.guard.v1', 50, 'degraded'),
    ('guard', 'c', 'beamline.ext.validate.guard.v1', 50, 'unhealthy');

select id, type, subject, timeout_ms, retry, enabled, version, circuit_breaker_state, open_versions, success_rate,
    epoch is not null as epoch
from ext_lookup('mask');
select id from ext_lookup('nobody');
select id, enabled from ext_lookup_by_type('validator');
select id, enabled from ext_lookup_by_type('post');
select id from ext_lookup_by_type('nothing');
select version, subject, timeout_ms, retry, routing_rules, rollout_percent, enabled, circuit_breaker_state, breaker_mode
from ext_versions('guard');
select instance_id, weight, health_status, versions, eligible, effective_weight, ejected_until from ext_instances('guard');

select count(ext_report('guard', 'success', 10, 'v1', 'a')) from generate_series(1, 3);
select ext_report('guard', 'error', 30, 'v2');
select extension_id, success_count, failure_count, success_rate, circuit_breaker_state, last_failure is not null as failed
from ext_health('guard');
select extension_id from ext_health('nobody');
select extension_id, success_count, failure_count from ext_health_all() where extension_id in ('guard', 'mask');
select version, success_count, failure_count, error_count, subject, enabled
from extension_version_health
where extension_id = 'guard'
order by version;
select instance_id, success_count, versions from extension_instance_health where extension_id = 'guard' order by instance_id;
select total, healthy, unhealthy, half_open, avg_success_rate, p50_latency_ms <= p99_latency_ms as ordered
from ext_health_summary();
select total, extensions_by_type, triggers_intact, version = library_version as versions_agree, is_standby,
    targets_used <= targets_total as fits
from ext_registry_status();
select * from ext_reload();

-- A trigger that is not as it should be is reported.
begin;
alter table extension_versions enable trigger "!invalidate";
select triggers_intact from ext_registry_status();
rollback;

delete from extensions where id in ('guard', 'mask');
