-- A whole successful call of the replaced system: five statements before it and six after it, each a transaction of its
-- own. Percentiles are moved by the last value, as it did. Tables: ../eleven.sql.
\set id random(1, :extensions)
\set ms random(5, 20)
-- Before: state of the breaker, versions to match, type, the version chosen, its instances.
select circuit_breaker_state, circuit_breaker_opened_at
from eleven.extension_health where extension_id = :id;
select version, routing_rules
from eleven.extension_versions where id = :id and enabled order by created_at desc;
select type
from eleven.extensions where id = :id;
select subject, timeout_ms, retry, config, metadata
from eleven.extension_versions where id = :id and version = 'v2' and enabled;
select instance_id, subject, weight, health_status
from eleven.extension_instances where extension_id = :id and enabled;
-- After: counter, time of the last success, state of the breaker, latencies read, computed and written, last latency.
update eleven.extension_health set success_count = success_count + 1, updated_at = now()
where extension_id = :id;
update eleven.extension_health set last_success = now(), updated_at = now()
where extension_id = :id;
select circuit_breaker_state
from eleven.extension_health where extension_id = :id;
select latency_samples, latency_sum, p50_latency_ms, p95_latency_ms, p99_latency_ms, latency_samples_window_start
from eleven.extension_health where extension_id = :id \gset
\set samples :latency_samples + 1
\set sum :latency_sum + :ms
\set avg 1.0 * :sum / :samples
\set p50 (:p50_latency_ms + :avg) / 2
\set p95 :p95_latency_ms + 0.05 * (:ms - :p95_latency_ms)
\set p99 :p99_latency_ms + 0.01 * (:ms - :p99_latency_ms)
update eleven.extension_health
set latency_samples = :samples, latency_sum = :sum, avg_latency_ms = :avg, p50_latency_ms = :p50,
    p95_latency_ms = :p95, p99_latency_ms = :p99, updated_at = now()
where extension_id = :id;
update eleven.extension_health set last_latency_ms = :ms, updated_at = now()
where extension_id = :id;
