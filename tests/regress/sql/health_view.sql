-- extension_health: columns, settings, reset, and what it refuses. Commits, as a reset happens at commit; cleans up.

select column_name, data_type
from information_schema.columns
where (table_schema, table_name) = ('public', 'extension_health')
order by ordinal_position;

insert into extensions (id, type, subject) values ('calm', 'pre', 's.calm'), ('shaky', 'post', 's.shaky');

-- Without a call there is no data, which is NULL.
select success_count, failure_count, success_rate, avg_latency_ms, p95_latency_ms, circuit_breaker_state, circuit_breaker_opened_at
from extension_health
where extension_id = 'calm';

-- The defaults of the view are those of the table.
create temporary table by_view as
select to_jsonb(h) - 'updated_at' as settings from extension_health h where h.extension_id = 'calm';
begin;
insert into extension_health_settings (extension_id) values ('calm');
select to_jsonb(h) - 'updated_at' = by_view.settings as same from extension_health h, by_view where h.extension_id = 'calm';
rollback;

-- Settings: what differs is written, a row appears when it is needed.
update extension_health set half_open_max_requests = 3 where extension_id = 'calm';
select count(*) from extension_health_settings where extension_id = 'calm';
update extension_health set slow_call_ms = 250, slow_call_rate_threshold = 0.5 where extension_id = 'calm'
returning extension_id, slow_call_ms, slow_call_rate_threshold, circuit_breaker_state;
update extension_health set circuit_breaker_failure_threshold = null;
update extension_health set circuit_breaker_error_rate_threshold = 0.125 where extension_id = 'calm';
select extension_id, circuit_breaker_failure_threshold, circuit_breaker_error_rate_threshold, slow_call_ms, breaker_mode
from extension_health_settings
order by extension_id;
delete from extension_health_settings where extension_id = 'shaky';

-- Five errors open the breaker; the statement of the runbook closes it, but not if it is rolled back.
select count(ext_report('shaky', 'error', 10)) from generate_series(1, 5);
select circuit_breaker_state, circuit_breaker_opened_at is not null as opened, failure_count, success_rate, open_versions
from extension_health
where extension_id = 'shaky';
begin;
UPDATE extension_health
SET circuit_breaker_state = 'closed',
    circuit_breaker_opened_at = NULL
WHERE extension_id = 'shaky'
RETURNING extension_id, circuit_breaker_state, circuit_breaker_opened_at, failure_count;
select version, epoch from extension_breaker_resets where extension_id = 'shaky';
rollback;
select circuit_breaker_state from extension_health where extension_id = 'shaky';
UPDATE extension_health
SET circuit_breaker_state = 'closed',
    circuit_breaker_opened_at = NULL
WHERE extension_id = 'shaky';
select circuit_breaker_state, circuit_breaker_opened_at, failure_count, open_versions
from extension_health
where extension_id = 'shaky';
select ext_breaker_reset('shaky');
select version, epoch from extension_breaker_resets where extension_id = 'shaky';
select ext_breaker_reset('shaky', 'v1');
select version, epoch from extension_breaker_resets where extension_id = 'shaky' order by 1;

-- Refused.
\set VERBOSITY terse
update extension_health set circuit_breaker_state = 'open';
update extension_health set circuit_breaker_state = null;
update extension_health set success_count = 0;
update extension_health set p95_latency_ms = 1;
update extension_health set open_versions = '{v7}';
update extension_health set extension_id = 'other' where extension_id = 'calm';
update extension_health set circuit_breaker_window_seconds = 0;
update extension_health set circuit_breaker_window_seconds = null;
update extension_health set circuit_breaker_error_rate_threshold = 1.5;
update extension_health set half_open_max_requests = 101;
update extension_health set breaker_mode = 'ajar';
insert into extension_health (extension_id) values ('new');
delete from extension_health;
select ext_breaker_reset('nobody');
select ext_breaker_reset(null);
select ext_breaker_reset('calm', 'v9');
\set VERBOSITY default
update extension_health set circuit_breaker_state = 'open' where extension_id = 'calm';

delete from extensions where id in ('calm', 'shaky');
