-- Decisions: the worked examples, explanations, batches, reports, a breaker that opens and is reset. Commits; cleans up.

insert into extensions (id, type, subject, timeout_ms, retry, config) values
    ('norm', 'pre', 'beamline.ext.pre.norm.v1', 80, 1, '{"lowercase": true}');

-- A decision in full. The ticket is for the report; the epoch is the same as long as the configuration is.
select extension_id, type, version, instance_id, subject, timeout_ms, retry, config, allowed, reason, retry_after_ms,
    ticket > 0 as has_ticket, epoch = (select l.epoch from ext_lookup('norm') l) as epoch_of_lookup
from ext_select('norm') \gx

-- Versions: v2 for two tenants, then for all, then for nobody.
insert into extension_versions (id, version, subject, timeout_ms, retry, config, routing_rules) values
    ('norm', 'v1', 'beamline.ext.pre.norm.v1', 80, 1, '{"lowercase": true}', '{}'),
    ('norm', 'v2', 'beamline.ext.pre.norm.v2', 100, 2, '{"lowercase": false}', '{"tenant_id": ["tenant1", "tenant2"]}');
create temporary view by_tenant as
select t.tenant, d.version, d.subject, d.timeout_ms, d.retry, d.config, d.reason
from unnest(array['tenant1', 'tenant2', 'tenant3', null]) with ordinality t(tenant, n)
cross join lateral ext_select('norm', jsonb_build_object('tenant_id', t.tenant)) d
order by t.n;
select * from by_tenant;
update extension_versions set routing_rules = '{}' where version = 'v2';
select tenant, version from by_tenant;
update extension_versions set routing_rules = '{"tenant_id": []}' where version = 'v2';
select tenant, version from by_tenant;
update extension_versions set routing_rules = '{"tenant_id": ["tenant1", "tenant2"]}' where version = 'v2';
update extension_versions set enabled = false where version = 'v2';
select tenant, version from by_tenant;
update extension_versions set enabled = true where version = 'v2';

-- Instances serve the version of their subject; v2 keeps its own. Two to one, smoothly.
insert into extension_instances (extension_id, instance_id, subject, weight, health_status) values
    ('norm', 'a', 'beamline.ext.pre.norm.v1', 100, 'healthy'),
    ('norm', 'b', 'beamline.ext.pre.norm.v1', 50, 'healthy'),
    ('norm', 'sick', 'beamline.ext.pre.norm.v1', 100, 'unhealthy'),
    ('norm', 'off', 'beamline.ext.pre.norm.v1', 100, 'healthy');
update extension_instances set draining = true where instance_id = 'off';
-- (The number goes into the context: a function without a parameter from outside is scanned once.)
select d.instance_id, count(*)
from generate_series(1, 30) n, ext_select('norm', jsonb_build_object('n', n)) d
group by d.instance_id
order by d.instance_id;
select version, instance_id, subject from ext_select('norm', '{"tenant_id": "tenant1"}');
select instance_id from ext_select('norm', avoid => array['a']);
select instance_id from ext_select('norm', avoid => array['b']);
select instance_id in ('a', 'b') as one_of_them from ext_select('norm', avoid => array['a', 'b', 'sick', 'off']);

-- Why. The same code that decides, without an effect: asked twice it says the same.
select * from ext_explain('norm', '{"tenant_id": "tenant1"}');
select step, stage, candidate, verdict, case when verdict in ('chosen', 'not reached') and stage = 'instance' then '' else detail end as detail
from ext_explain('norm')
where candidate not in ('a', 'b');
select array(select e from ext_explain('norm') e) = array(select e from ext_explain('norm') e) as the_same;
select * from ext_explain('nobody');
select * from ext_explain(null);

-- Refusals are rows.
select d.*
from (values ('nobody', '{}'::jsonb), (null, '{}'), ('norm', null)) c(id, context)
cross join lateral (select e.extension_id, e.version, e.allowed, e.reason, e.ticket > 0 as has_ticket from ext_select(c.id, c.context) e) d;
update extensions set metadata = '{"allowed_tenants": ["tenant1"]}';
select tenant, version, reason from by_tenant;
update extensions set metadata = '{"allowed_tenants": "tenant1"}';
select tenant, version, reason from by_tenant;
update extensions set metadata = '{}', enabled = false;
select tenant, version, reason from by_tenant;
select stage, candidate, verdict, detail from ext_explain('norm');
update extensions set enabled = true;

-- Many at once: one row each, in their order. Mistakes are errors, before anything is decided.
select ordinality, extension_id, version, subject, allowed, reason
from ext_select_many(
    array['norm', 'nobody', 'norm', null, 'norm'],
    array['{"tenant_id": "tenant2"}', '{}', null, '{}', '{"tenant_id": "tenant9"}']::jsonb[],
    '[[], [], ["a"], null, ["b"]]')
order by ordinality;
select instance_id, ordinality
from ext_select_many(array['norm', 'norm'], array['{}', '{}']::jsonb[], '[["a"], ["b"]]')
order by ordinality;
select count(*) from ext_select_many('{}', '{}');
\set VERBOSITY terse
select ext_select('norm', '[]');
select ext_select('norm', '"tenant1"');
select ext_select('norm', 'null');
select * from ext_select_many(array['norm'], array['{}', '{}']::jsonb[]);
select * from ext_select_many(array['norm'], array['7']::jsonb[]);
select * from ext_select_many(array['norm'], array['{}']::jsonb[], '{}');
select * from ext_select_many(array['norm'], array['{}']::jsonb[], '[]');
select * from ext_select_many(array['norm'], array['{}']::jsonb[], '["a"]');
\set VERBOSITY default

-- Reports: by ticket, once; by name; many, all or none.
delete from extension_instances;
select ticket from ext_select('norm') \gset
select ext_report(:ticket, 'success', 12.5);
select ext_report(:ticket, 'success', 12.5);
select ext_report(0, 'error', 1);
select ext_report('norm', 'caller_error', 1);
select ext_report('norm', 'success', 25, version => 'v2', retries => 2);
select array_agg(ticket order by ordinality) as tickets
from ext_select_many(array['norm', 'norm', 'norm'], array['{}', '{}', '{}']::jsonb[]) \gset
\set VERBOSITY terse
select ext_report_many(:'tickets', array['success', 'error', 'fine'], array[1, 2, 3], array[0, 0, 0]);
select ext_report_many(:'tickets', array['success', 'error'], array[1, 2], array[0, 0]);
select ext_report_many(:'tickets', array['success', 'error', null], array[1, 2, 3], array[0, 0, 0]);
select ext_report_many(:'tickets', array['success', 'error', 'error'], array[1, 'NaN', 3]::float8[], array[0, 0, 0]);
select ext_report('norm', 'success', 'NaN');
select ext_report('norm', 'success', -1);
select ext_report('norm', 'success', null);
select ext_report('norm', null, 1);
select ext_report('norm', 'splendid', 1);
select ext_report('nobody', 'success', 1);
select ext_report('norm', 'success', 1, version => 'v9');
select ext_report('norm', 'success', 1, instance_id => 'a');
select ext_report('norm', 'success', 1, retries => -1);
\set VERBOSITY default
select ext_report('norm', 'splendid', 1);
select * from ext_report_many(:'tickets', array['success', 'error', 'cancelled'], array[10, 30, 20], array[0, 1, 0]);
select * from ext_report_many(:'tickets', array['success', 'error', 'cancelled'], array[10, 30, 20], array[0, 1, 0]);
select version, success_count, failure_count, error_count, cancelled_count, caller_error_count, latency_samples, last_latency_ms, in_flight >= 0 as counted
from extension_version_health
where extension_id = 'norm'
order by version;

-- A batch of a bridge is applied once, however often it is sent.
select tickets as batch from (
    select array_agg(ticket) as tickets from ext_select_many(array['norm', 'norm'], array['{}', '{}']::jsonb[])) t \gset
\set bridge '7f5e7b7a-0000-4000-8000-000000000001'
select applied from ext_report_many(:'batch', array['success', 'success'], array[10, 10], array[0, 0], :'bridge', 1);
select applied from ext_report_many(:'batch', array['success', 'success'], array[10, 10], array[0, 0], :'bridge', 1);
select applied from ext_report_many('{}', '{}', '{}', '{}', :'bridge', 2);

-- Five failures open the breaker of v2: its tenants fall through to v1, and nobody else notices.
select count(ext_report('norm', 'timeout', 100, version => 'v2')) from generate_series(1, 5);
select tenant, version, reason from by_tenant;
select version, circuit_breaker_state, window_requests, window_failures, retry_after_ms between 50000 and 66000 as about_a_minute
from extension_version_health
where extension_id = 'norm'
order by version;
select circuit_breaker_state, open_versions, circuit_breaker_opened_at is not null as opened from extension_health where extension_id = 'norm';
select stage, candidate, verdict, regexp_replace(detail, '\d+ ms', 'N ms') as detail from ext_explain('norm', '{"tenant_id": "tenant1"}');

-- With v1 open too nobody is served: a refusal says when to come again, and is counted as such.
select count(ext_report('norm', 'no_responders', 1, version => 'v1')) from generate_series(1, 5);
select tenant, version, subject, reason from by_tenant;
select allowed, reason, retry_after_ms between 50000 and 66000 as about_a_minute, ticket from ext_select('norm');
select version, circuit_open_count, timeout_count, no_responders_count from extension_version_health where extension_id = 'norm' order by version;

-- The reset of one version, then of all, as the runbook has it.
select ext_breaker_reset('norm', 'v1');
select tenant, version, reason from by_tenant;
UPDATE extension_health
SET circuit_breaker_state = 'closed',
    circuit_breaker_opened_at = NULL
WHERE extension_id = 'norm';
select tenant, version, reason from by_tenant;
select version, circuit_breaker_state, window_failures, failure_count from extension_version_health where extension_id = 'norm' order by version;

-- Operators may take the decision over, for the extension or for one version.
select ext_breaker_force('norm', 'forced_open');
select allowed, reason, retry_after_ms from ext_select('norm');
select circuit_breaker_state, open_versions, breaker_mode from extension_health where extension_id = 'norm';
select stage, candidate, verdict, detail from ext_explain('norm');
select ext_breaker_force('norm', 'auto');
select ext_breaker_force('norm', 'forced_open', 'v2');
select tenant, version, reason from by_tenant;
select version, breaker_mode, circuit_breaker_state from extension_version_health where extension_id = 'norm' order by version;
-- One that is forced closed, or only measured, counts and never opens; back in auto it begins as closed.
select ext_breaker_force('norm', 'metrics_only', 'v2');
select count(ext_report('norm', 'error', 1, version => 'v2')) from generate_series(1, 50);
select tenant, version, reason from by_tenant;
select ext_breaker_force('norm', 'auto', 'v2');
select version, breaker_mode, circuit_breaker_state, failure_count from extension_version_health where extension_id = 'norm' order by version;
select allowed, reason from ext_select('norm', '{"tenant_id": "tenant1"}');
\set VERBOSITY terse
select ext_breaker_force('norm', 'ajar');
select ext_breaker_force('norm', null);
select ext_breaker_force('nobody', 'auto');
select ext_breaker_force('norm', 'auto', 'v9');
\set VERBOSITY default

delete from extensions where id = 'norm';
select reason from ext_select('norm');
