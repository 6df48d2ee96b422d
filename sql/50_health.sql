-- Health: live state joined to the registry, as one would look at it in psql.
--
-- The functions say how many rows to expect (default: 1000), or the planner would take joins of these views for big ones.

create function @extschema@._ext_live_extension(id text) returns @extschema@._ext_live
language c volatile strict parallel safe
as 'MODULE_PATHNAME', '_ext_live_extension';

comment on function @extschema@._ext_live_extension(text) is 'Live state of an extension, summed over its versions.';

create function @extschema@._ext_live_versions(id text) returns setof @extschema@._ext_live_version
language c volatile strict parallel safe rows 3
as 'MODULE_PATHNAME', '_ext_live_versions';

comment on function @extschema@._ext_live_versions(text) is
    'Live state of an extension''s versions, the one that the row of extensions is included.';

create function @extschema@._ext_shortfalls(
    id text,
    out version text,
    out never_key text,
    out gets_percent double precision,
    out taken_by text,
    out taken_percent double precision
) returns setof record
language c volatile strict parallel safe rows 1
as 'MODULE_PATHNAME', '_ext_shortfalls';

comment on function @extschema@._ext_shortfalls(text) is
    'Versions that fewer requests reach than rollout_percent says: the key of their rules that no value satisfies, or the share they get and the version with the same rules that takes most of the rest.';

create function @extschema@._ext_live_instance(extension_id text, instance_id text) returns @extschema@._ext_live_instance
language c volatile strict parallel safe
as 'MODULE_PATHNAME', '_ext_live_instance';

comment on function @extschema@._ext_live_instance(text, text) is 'Live state of an instance.';

create function @extschema@._ext_merged_latency(
    out samples bigint,
    out avg_ms double precision,
    out p50_ms double precision,
    out p95_ms double precision,
    out p99_ms double precision
) returns record
language c volatile parallel safe
as 'MODULE_PATHNAME', '_ext_merged_latency';

comment on function @extschema@._ext_merged_latency() is
    'Latencies of the last 5 minutes, the histograms of all extensions merged; NULL without data.';

create view @extschema@._ext_settings as
select s.*
from @extschema@.extension_health_settings s
union all
-- The defaults of extension_health_settings, for extensions without a row there.
select e.id, 5, 0.01, 0.5, 5, 60, 60, null, null, 3, 'auto', 5, 50, null
from @extschema@.extensions e
where not exists (select from @extschema@.extension_health_settings s where s.extension_id = e.id);

comment on view @extschema@._ext_settings is 'The settings of every extension: its stored row, or the defaults.';

create view @extschema@.extension_health as
select
    e.id as extension_id,
    l.last_success,
    l.last_failure,
    l.success_count,
    l.failure_count,
    l.avg_latency_ms,
    l.p50_latency_ms,
    l.p95_latency_ms,
    l.p99_latency_ms,
    l.last_latency_ms,
    l.latency_samples,
    l.latency_sum,
    l.latency_samples_window_start,
    l.circuit_breaker_state::varchar(32) as circuit_breaker_state,
    l.circuit_breaker_opened_at,
    s.circuit_breaker_failure_threshold,
    s.circuit_breaker_error_rate_threshold::numeric as circuit_breaker_error_rate_threshold,
    s.circuit_breaker_window_seconds,
    s.half_open_max_requests,
    l.half_open_requests_count,
    greatest(l.updated_at, s.updated_at) as updated_at,
    l.success_rate,
    l.open_versions,
    s.circuit_breaker_failure_min_rate,
    s.circuit_breaker_minimum_requests,
    s.circuit_breaker_timeout_seconds,
    s.slow_call_ms,
    s.slow_call_rate_threshold,
    s.breaker_mode,
    s.ejection_consecutive_failures,
    s.max_ejection_percent
from @extschema@.extensions e
join @extschema@._ext_settings s on s.extension_id = e.id
cross join lateral @extschema@._ext_live_extension(e.id) l;

comment on view @extschema@.extension_health is
    'Health of every extension: live state, and the settings of its breakers. The settings may be updated; setting circuit_breaker_state to ''closed'' resets all its versions at commit.';
comment on column @extschema@.extension_health.extension_id is 'The extension.';
comment on column @extschema@.extension_health.last_success is 'When a call last succeeded.';
comment on column @extschema@.extension_health.last_failure is 'When a call last failed.';
comment on column @extschema@.extension_health.success_count is 'Successes since the statistics were last reset.';
comment on column @extschema@.extension_health.failure_count is 'Failures since the statistics were last reset.';
comment on column @extschema@.extension_health.avg_latency_ms is 'Mean latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_health.p50_latency_ms is 'Median latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_health.p95_latency_ms is '95th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_health.p99_latency_ms is '99th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_health.last_latency_ms is 'Latency of the last call, in ms.';
comment on column @extschema@.extension_health.latency_samples is 'Latencies in the last 5 minutes.';
comment on column @extschema@.extension_health.latency_sum is 'Their sum, in ms.';
comment on column @extschema@.extension_health.latency_samples_window_start is 'Since when they are counted.';
comment on column @extschema@.extension_health.circuit_breaker_state is
    'closed, half_open or open: the worst of its versions, leaving out those that can serve nobody. May be set to ''closed''.';
comment on column @extschema@.extension_health.circuit_breaker_opened_at is 'Since when it is open.';
comment on column @extschema@.extension_health.circuit_breaker_failure_threshold is
    'Setting (5): failures within the window that open; NULL: the count does not open.';
comment on column @extschema@.extension_health.circuit_breaker_error_rate_threshold is
    'Setting (0.5): failures / outcomes within the window that open; NULL: the rate does not open.';
comment on column @extschema@.extension_health.circuit_breaker_window_seconds is 'Setting (60): length of the window in s, 1 to 3600.';
comment on column @extschema@.extension_health.half_open_max_requests is
    'Setting (3): probes at once while half open, and successes needed to close; 1 to 100.';
comment on column @extschema@.extension_health.half_open_requests_count is 'Probes under way.';
comment on column @extschema@.extension_health.updated_at is 'The last outcome or change of settings.';
comment on column @extschema@.extension_health.success_rate is 'Successes / outcomes of the last 5 minutes.';
comment on column @extschema@.extension_health.open_versions is 'The versions whose breaker is open.';
comment on column @extschema@.extension_health.circuit_breaker_failure_min_rate is
    'Setting (0.01): the count of failures opens only at or above this error rate; NULL: always.';
comment on column @extschema@.extension_health.circuit_breaker_minimum_requests is
    'Setting (5): with fewer outcomes in the window no rate opens.';
comment on column @extschema@.extension_health.circuit_breaker_timeout_seconds is
    'Setting (60): how long it stays open before probing, in s; longer for each re-opening without a recovery.';
comment on column @extschema@.extension_health.slow_call_ms is 'Setting (NULL): a success slower than this, in ms, is a slow call.';
comment on column @extschema@.extension_health.slow_call_rate_threshold is
    'Setting (NULL): share of slow calls in the window that opens.';
comment on column @extschema@.extension_health.breaker_mode is 'Setting (auto): auto, forced_open, forced_closed or metrics_only.';
comment on column @extschema@.extension_health.ejection_consecutive_failures is
    'Setting (5): failures in a row that take an instance out for a while; NULL: none do.';
comment on column @extschema@.extension_health.max_ejection_percent is
    'Setting (50): at most this share of the instances is out at once.';

create view @extschema@.extension_version_health as
select
    e.id as extension_id,
    l.version,
    l.enabled,
    l.subject,
    l.circuit_breaker_state,
    l.circuit_breaker_opened_at,
    l.breaker_mode,
    l.success_rate,
    l.success_count,
    l.failure_count,
    l.error_count,
    l.timeout_count,
    l.no_responders_count,
    l.invalid_response_count,
    l.cancelled_count,
    l.caller_error_count,
    l.circuit_open_count,
    l.avg_latency_ms,
    l.p50_latency_ms,
    l.p95_latency_ms,
    l.p99_latency_ms,
    l.last_latency_ms,
    l.latency_samples,
    l.last_success,
    l.last_failure,
    l.window_requests,
    l.window_failures,
    l.window_slow,
    l.half_open_requests_count,
    l.retry_after_ms,
    l.in_flight,
    l.updated_at
from @extschema@.extensions e
cross join lateral @extschema@._ext_live_versions(e.id) l;

comment on view @extschema@.extension_version_health is
    'Health of every version, the one that the row of extensions is included.';
comment on column @extschema@.extension_version_health.extension_id is 'The extension.';
comment on column @extschema@.extension_version_health.version is 'The version.';
comment on column @extschema@.extension_version_health.enabled is 'Whether it may be chosen.';
comment on column @extschema@.extension_version_health.subject is 'Its NATS subject.';
comment on column @extschema@.extension_version_health.circuit_breaker_state is 'closed, half_open or open.';
comment on column @extschema@.extension_version_health.circuit_breaker_opened_at is 'Since when it is open.';
comment on column @extschema@.extension_version_health.breaker_mode is 'auto, forced_open, forced_closed or metrics_only.';
comment on column @extschema@.extension_version_health.success_rate is 'Successes / outcomes of the last 5 minutes.';
comment on column @extschema@.extension_version_health.success_count is 'Successes since the statistics were last reset.';
comment on column @extschema@.extension_version_health.failure_count is 'Failures since the statistics were last reset.';
comment on column @extschema@.extension_version_health.error_count is 'Of these: answered with an error.';
comment on column @extschema@.extension_version_health.timeout_count is 'Of these: not answered in time.';
comment on column @extschema@.extension_version_health.no_responders_count is 'Of these: nobody listened.';
comment on column @extschema@.extension_version_health.invalid_response_count is 'Of these: answered with something of the wrong shape.';
comment on column @extschema@.extension_version_health.cancelled_count is 'Given up by the caller; neither success nor failure.';
comment on column @extschema@.extension_version_health.caller_error_count is 'The caller''s fault; neither success nor failure.';
comment on column @extschema@.extension_version_health.circuit_open_count is 'Calls refused by the open breaker.';
comment on column @extschema@.extension_version_health.avg_latency_ms is 'Mean latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_version_health.p50_latency_ms is 'Median latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_version_health.p95_latency_ms is '95th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_version_health.p99_latency_ms is '99th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_version_health.last_latency_ms is 'Latency of the last call, in ms.';
comment on column @extschema@.extension_version_health.latency_samples is 'Latencies in the last 5 minutes.';
comment on column @extschema@.extension_version_health.last_success is 'When a call last succeeded.';
comment on column @extschema@.extension_version_health.last_failure is 'When a call last failed.';
comment on column @extschema@.extension_version_health.window_requests is 'Outcomes in the breaker''s window.';
comment on column @extschema@.extension_version_health.window_failures is 'Failures in the breaker''s window.';
comment on column @extschema@.extension_version_health.window_slow is 'Slow calls in the breaker''s window.';
comment on column @extschema@.extension_version_health.half_open_requests_count is 'Probes under way.';
comment on column @extschema@.extension_version_health.retry_after_ms is 'When the breaker may admit a call again, in ms.';
comment on column @extschema@.extension_version_health.in_flight is 'Calls decided and not yet reported.';
comment on column @extschema@.extension_version_health.updated_at is 'The last outcome.';

create view @extschema@.extension_instance_health as
select
    i.extension_id,
    i.instance_id,
    l.versions,
    i.enabled,
    i.health_status,
    i.draining,
    l.eligible,
    i.weight,
    l.effective_weight,
    l.ejected_until,
    l.success_rate,
    l.success_count,
    l.failure_count,
    l.avg_latency_ms,
    l.p50_latency_ms,
    l.p95_latency_ms,
    l.p99_latency_ms,
    l.last_latency_ms,
    l.latency_samples,
    l.last_success,
    l.last_failure,
    l.in_flight,
    i.last_health_check,
    l.updated_at
from @extschema@.extension_instances i
cross join lateral @extschema@._ext_live_instance(i.extension_id, i.instance_id) l;

comment on view @extschema@.extension_instance_health is 'Health of every instance.';
comment on column @extschema@.extension_instance_health.extension_id is 'The extension.';
comment on column @extschema@.extension_instance_health.instance_id is 'The instance.';
comment on column @extschema@.extension_instance_health.versions is 'The versions it serves.';
comment on column @extschema@.extension_instance_health.enabled is 'As registered.';
comment on column @extschema@.extension_instance_health.health_status is 'As registered.';
comment on column @extschema@.extension_instance_health.draining is 'As registered.';
comment on column @extschema@.extension_instance_health.eligible is 'Whether it may be chosen now.';
comment on column @extschema@.extension_instance_health.weight is 'As registered.';
comment on column @extschema@.extension_instance_health.effective_weight is 'What is left of it: halved if degraded.';
comment on column @extschema@.extension_instance_health.ejected_until is 'Until when it is left out because calls to it failed.';
comment on column @extschema@.extension_instance_health.success_rate is 'Successes / outcomes of the last 5 minutes.';
comment on column @extschema@.extension_instance_health.success_count is 'Successes since the statistics were last reset.';
comment on column @extschema@.extension_instance_health.failure_count is 'Failures since the statistics were last reset.';
comment on column @extschema@.extension_instance_health.avg_latency_ms is 'Mean latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_instance_health.p50_latency_ms is 'Median latency of the last 5 minutes, in ms.';
comment on column @extschema@.extension_instance_health.p95_latency_ms is '95th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_instance_health.p99_latency_ms is '99th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.extension_instance_health.last_latency_ms is 'Latency of the last call, in ms.';
comment on column @extschema@.extension_instance_health.latency_samples is 'Latencies in the last 5 minutes.';
comment on column @extschema@.extension_instance_health.last_success is 'When a call last succeeded.';
comment on column @extschema@.extension_instance_health.last_failure is 'When a call last failed.';
comment on column @extschema@.extension_instance_health.in_flight is 'Calls decided and not yet reported.';
comment on column @extschema@.extension_instance_health.last_health_check is 'As registered.';
comment on column @extschema@.extension_instance_health.updated_at is 'The last outcome.';
