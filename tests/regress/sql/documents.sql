-- ext_register, ext_import, ext_export.
\set ON_ERROR_ROLLBACK on
\set VERBOSITY terse
begin;

-- Three keys are enough, and mean what an INSERT of three columns means.
select ext_register('{"id": "a", "type": "pre", "subject": "s.a"}') is not null as registered;
insert into extensions (id, type, subject) values ('b', 'pre', 's.a');
select (select document - 'id' from _ext_documents where id = 'a') = (select document - 'id' from _ext_documents where id = 'b') as same;

-- A whole document.
select ext_register('{
    "id": "a", "type": "pre", "subject": "s.a", "timeout_ms": 250, "config": {"max_length": 2000},
    "health": {"slow_call_ms": 5.5, "circuit_breaker_failure_threshold": null},
    "versions": [
        {"version": "v2", "subject": "s.a2", "routing_rules": {"tenant_id": ["t1", "t2"]}},
        {"version": "v3", "subject": "s.a3", "timeout_ms": 99, "rollout_percent": 12.5, "breaker_mode": "forced_closed"}],
    "instances": [
        {"instance_id": "i", "subject": "s.a"},
        {"instance_id": "j", "subject": "s.a", "weight": 7, "draining": true, "version": "v1"}]}') is not null as registered;
select version, subject, timeout_ms, retry, routing_rules, rollout_percent, breaker_mode from extension_versions order by 1;
select instance_id, weight, draining, version from extension_instances order by 1;
select slow_call_ms, circuit_breaker_failure_threshold, circuit_breaker_error_rate_threshold from extension_health_settings;

-- What a document leaves out stays; its lists are whole.
select ext_register('{"id": "a", "type": "pre", "subject": "s.new", "versions": [{"version": "v2", "subject": "s.a2"}]}') is not null as registered;
select subject, timeout_ms, config from extensions where id = 'a';
select version, routing_rules from extension_versions;
select count(*) from extension_instances;
select ext_register('{"id": "a", "type": "pre", "subject": "s.new", "instances": [], "health": null}') is not null as registered;
select count(*) from extension_instances;
select count(*) from extension_health_settings;

-- The same again changes nothing.
create temporary table entries as select count(*) from extension_audit_log;
select count(*) from (select ext_import(ext_export())) done;
select count(*) - (select count from entries) as entries from extension_audit_log;

-- Only if nobody has changed it meanwhile.
select ext_register('{"id": "a", "type": "pre", "subject": "s.a", "retry": 1}', (select epoch from ext_lookup('a'))) = epoch as same
from ext_lookup('a');
select ext_register('{"id": "a", "type": "pre", "subject": "s.a", "retry": 2}', epoch) is not null as registered from ext_lookup('a');
create temporary table old as select epoch from ext_lookup('a');
update extensions set retry = 3 where id = 'a';
do $$
begin
    perform ext_register('{"id": "a", "type": "pre", "subject": "s.a", "retry": 4}', (select epoch from old));
exception when serialization_failure then
    raise notice 'refused: somebody else has changed it';
end $$;
select retry from extensions where id = 'a';

-- Out and in again.
select ext_register('{"id": "c", "type": "provider", "subject": "s.c", "balancing": "consistent_hash", "hash_key": "session_id",
    "versions": [{"version": "v1.2.0", "subject": "s.c", "slow_call_ms": 0.1, "rollout_key": "user"}],
    "health": {"breaker_mode": "metrics_only"}}') is not null as registered;
select * from ext_import('{"policies": [
    {"tenant_id": "t", "policy_id": "p", "document": {"pre": [{"id": "a"}]}},
    {"tenant_id": "t", "policy_id": "q", "document": {}, "enabled": false}]}');
create temporary table exported as select ext_export() as doc;
update extensions set enabled = false, hash_key = 'other', metadata = '{"x": 1}';
update extension_versions set slow_call_ms = 9, rollout_percent = 1;
update extension_health set slow_call_ms = 77;
insert into extension_instances (extension_id, instance_id, subject) values ('b', 'i', 's.a');
update extension_policies set enabled = false;
select i.* from exported, ext_import(doc) i;
select ext_export() = doc as same from exported;
delete from extensions;
delete from extension_policies;
select i.* from exported, ext_import(doc) i;
select ext_export() = doc as same from exported;
select jsonb_pretty(document) from _ext_documents where id = 'c';

-- Refused, by name, with nothing stored.
select ext_register(null);
select ext_register('[]');
select ext_register('{"id": "x", "type": "pre"}');
select ext_register('{"id": 5, "type": "pre", "subject": "s"}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "colour": "red"}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "uid": 1}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "timeout_ms": "100"}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "timeout_ms": 1.5}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "timeout_ms": 9}');
select ext_register('{"id": "x", "type": "pre", "subject": "s.*"}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "versions": {}}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "versions": [{"version": "v1"}]}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "versions": [{"version": "v1", "subject": "s", "routing_rules": {"t": {"like": 1}}}]}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "versions": [{"version": "v1", "subject": "s"}, {"version": "v1", "subject": "s"}]}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "instances": [{"instance_id": "i", "subject": "s", "last_health_check": "now"}]}');
select ext_register('{"id": "x", "type": "pre", "subject": "s", "health": {"success_count": 1}}');
select ext_import('{"extension": []}');
select ext_import('{"extensions": [{"id": "x", "type": "pre", "subject": "s"}, {"id": "z z", "type": "pre", "subject": "s"}]}');
select ext_import('{"policies": [{"tenant_id": "t", "policy_id": "p", "document": {"prae": []}}]}');
select count(*) from extensions where id = 'x';
\set VERBOSITY default
\set SHOW_CONTEXT never
select ext_register('{"id": "x", "type": "pre", "subject": "s", "colour": "red"}');

rollback;
