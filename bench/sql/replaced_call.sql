-- One successful call of the replaced system: five statements before it, six after it, each a transaction of its own.
\set e random(:low, :high)
select circuit_breaker_state, circuit_breaker_opened_at from replaced.extension_health where extension_id = :e;
select version, subject, timeout_ms, retry, config, metadata, routing_rules from replaced.extension_versions
where id = :e and enabled order by created_at desc;
select type from replaced.extensions where id = :e;
select subject, timeout_ms, retry, config, metadata from replaced.extension_versions where id = :e and version = 'v1';
select instance_id, subject, weight, health_status from replaced.extension_instances
where extension_id = :e and enabled order by weight desc, instance_id;
update replaced.extension_health set success_count = success_count + 1, updated_at = now() where extension_id = :e;
update replaced.extension_health set last_success = now(), updated_at = now() where extension_id = :e;
select circuit_breaker_state, success_count, failure_count from replaced.extension_health where extension_id = :e;
select latency_samples, latency_sum, p50_latency_ms, p95_latency_ms, p99_latency_ms, latency_samples_window_start
from replaced.extension_health where extension_id = :e;
update replaced.extension_health
set latency_samples = latency_samples + 1, latency_sum = latency_sum + 12, avg_latency_ms = 12, p50_latency_ms = 12,
    p95_latency_ms = 12, p99_latency_ms = 12, updated_at = now()
where extension_id = :e;
update replaced.extension_health set last_latency_ms = 12, updated_at = now() where extension_id = :e;
