-- What operators ask: where an extension is used, how it once stood, what has changed, what to object to.
\set ON_ERROR_ROLLBACK on
begin;

insert into extensions (id, type, subject, timeout_ms, retry) values
    ('normalize', 'pre', 's.n', 100, 0), ('pii', 'validator', 's.p', 100, 1), ('llm', 'provider', 's.l', 1000, 0),
    ('alone', 'provider', 's.a', 1000, 0), ('unused', 'post', 's.u', 100, 0);
insert into extension_policies (tenant_id, policy_id, enabled, document) values
    ('t1', 'a', true, '{"pre": [{"id": "normalize", "mode": "required"}], "validators": [{"id": "pii", "on_fail": "warn"}], "providers": [{"name": "llm", "weight": 1}, {"name": "alone", "weight": 1}], "post": [{"id": "normalize", "when": {"lang": "de"}}]}'),
    ('t2', 'b', false, '{"validators": [{"id": "pii"}], "providers": ["alone"]}');
select * from ext_policy_uses('normalize');
select * from ext_policy_uses('pii');
select * from ext_policy_uses('alone');
select * from ext_policy_uses('unused');
select * from ext_policy_uses(null);

-- A registration as it stood at any moment between its changes.
create temporary table moment (name text, at timestamptz);
create function pg_temp.mark(name text) returns void language sql as
    'insert into moment values (name, clock_timestamp()); select pg_sleep(0.002)';
create function pg_temp.at(n text) returns timestamptz language sql as 'select at from moment where name = n';
select pg_temp.mark('before');
insert into extensions (id, type, subject) values ('x', 'pre', 's.x');
select pg_temp.mark('new');
insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules) values ('x', 'v2', 's.x2', 90, 1, '{"tenant_id": ["t1"]}');
insert into extension_instances (extension_id, instance_id, subject) values ('x', 'i1', 's.x'), ('x', 'i2', 's.x');
update extension_health set slow_call_ms = 50 where extension_id = 'x';
select pg_temp.mark('full');
update extensions set timeout_ms = 777, config = '{"a": 1}' where id = 'x';
delete from extension_instances where instance_id = 'i1';
update extension_versions set version = 'v3' where id = 'x';
select pg_temp.mark('changed');
update extensions set id = 'y' where id = 'x';
select pg_temp.mark('renamed');
delete from extensions where id = 'y';
select pg_temp.mark('gone');
select ext_restore('x', pg_temp.at('new'));
select ext_restore('x', pg_temp.at('full'));
select ext_restore('x', pg_temp.at('changed'));
select ext_restore('y', pg_temp.at('renamed')) - 'id' = ext_restore('x', pg_temp.at('changed')) - 'id' as same;
\set VERBOSITY sqlstate
select ext_restore('x', pg_temp.at('before'));
select ext_restore('x', pg_temp.at('renamed'));
select ext_restore('y', pg_temp.at('gone'));
select ext_restore('nobody', now());
\set VERBOSITY default
select ext_restore('x', null);
select ext_restore('llm', 'infinity') = (select document from _ext_documents where id = 'llm') as as_it_is;
-- And back it is.
select ext_register(ext_restore('x', pg_temp.at('full'))) is not null as registered;
select (select document from _ext_documents where id = 'x') = ext_restore('x', pg_temp.at('full')) as as_it_was;

select extension_id, action, what, changes, as_role from extension_changes
where changed_at > pg_temp.at('before') and changed_at < pg_temp.at('gone') order by changed_at;

-- Policies are in the log, too.
select pg_temp.mark('policies');
update extension_policies set document = document - 'post' where (tenant_id, policy_id) = ('t1', 'a');
update extension_policies set enabled = true where (tenant_id, policy_id) = ('t2', 'b');
delete from extension_policies where (tenant_id, policy_id) = ('t2', 'b');
insert into extension_policies (tenant_id, policy_id, document) values ('t3', 'c', '{}');
truncate extension_policies;
select extension_id, action, what, changes from extension_changes where changed_at > pg_temp.at('policies') order by changed_at, what;

-- Advice.
select * from ext_advice();
update extension_health set breaker_mode = 'forced_open' where extension_id = 'llm';
update extension_health set circuit_breaker_failure_threshold = null, circuit_breaker_error_rate_threshold = null where extension_id = 'pii';
update extension_instances set health_status = 'unhealthy', draining = true where extension_id = 'x';
update extension_versions set routing_rules = '{"tenant_id": []}' where id = 'x';
insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules, rollout_percent) values
    ('unused', 'v2', 's.u', 100, 0, '{"size": {"gt": 10, "lt": 5}}', 100),
    -- Of the extension's own name: to disable it would be worse than to leave it.
    ('pii', 'v1', 's.p', 100, 0, '{"tenant_id": []}', 100),
    ('alone', 'v2', 's.a', 100, 0, '{}', 100), ('alone', 'v1.5', 's.a', 100, 0, '{}', 12.5), ('alone', 'v1', 's.a', 100, 0, '{}', 100),
    ('normalize', 'v3', 's.n', 100, 0, '{"tenant_id": "t1"}', 40), ('normalize', 'v2', 's.n', 100, 0, '{"tenant_id": "t1"}', 40),
    ('normalize', 'v1', 's.n', 100, 0, '{"tenant_id": "t1"}', 90), ('normalize', 'v4', 's.n', 100, 0, '{"tenant_id": "t2"}', 90);
select * from ext_advice();
-- What it says mends it.
do $$
declare r record;
begin
    for r in select remedy from ext_advice() loop execute r.remedy; end loop;
end;
$$;
select * from ext_advice();

select extension, state, calls_5m, per_s, in_flight from ext_top;
rollback;

-- Advice that needs traffic: outcomes are not transactional, but their settings are those that are committed.
insert into extensions (id, type, subject, timeout_ms, retry) values ('busy', 'pre', 's.b', 100, 0);
insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
values ('busy', 'v2', 's.b2', 100, 0, '{"tenant_id": "nobody"}');
insert into extension_instances (extension_id, instance_id, subject, version, weight) values
    ('busy', 'works', 's.b', 'v1', 100), ('busy', 'idle', 's.b', 'v1', 0);
update extension_health
set circuit_breaker_failure_min_rate = null, circuit_breaker_error_rate_threshold = null where extension_id = 'busy';
do $$
begin
    for n in 1 .. 600 loop
        perform ext_report('busy', 'success', 98, 'v1', 'works');
    end loop;
end;
$$;
select severity, what, finding, remedy from ext_advice() where extension_id = 'busy';
update extension_health set circuit_breaker_failure_min_rate = 0.01 where extension_id = 'busy';
update extensions set timeout_ms = 200 where id = 'busy';
select severity, what from ext_advice() where extension_id = 'busy' and what not like 'instance %';
