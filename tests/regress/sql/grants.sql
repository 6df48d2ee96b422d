-- What PUBLIC and each level can do, by trying.
\set ON_ERROR_ROLLBACK on
\set VERBOSITY terse
begin;

-- PUBLIC: the type hdr and nothing else.
select p.oid::regprocedure as function
from pg_proc p
join pg_depend d on (d.classid, d.objid, d.deptype) = ('pg_proc'::regclass, p.oid, 'e')
join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
where has_function_privilege('public', p.oid, 'execute');
select c.oid::regclass as relation
from pg_class c
join pg_depend d on (d.classid, d.objid, d.deptype) = ('pg_class'::regclass, c.oid, 'e')
join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
where c.relkind in ('r', 'v') and exists (select from aclexplode(c.relacl) a where a.grantee = 0);
select t.oid::regtype as type
from pg_type t
join pg_depend d on (d.classid, d.objid, d.deptype) = ('pg_type'::regclass, t.oid, 'e')
join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
left join pg_class c on c.oid = t.typrelid
where t.typelem = 0 and coalesce(c.relkind, 'c') = 'c' and has_type_privilege('public', t.oid, 'usage');

create role regress_public;
create role regress_viewer;
create role regress_operator;
create role regress_admin;
create role regress_bridge;
grant usage on schema public to regress_public;
select ext_grant('regress_viewer', 'viewer');
select ext_grant('regress_operator', 'operator');
select ext_grant('regress_admin', 'admin');
select ext_grant('regress_bridge', 'bridge');
select ext_grant('regress_viewer', 'root');
select role, level from extension_registry_grants where role like 'regress%' order by role;

insert into extensions (id, type, subject) values ('a', 'pre', 's.a');
insert into extension_instances (extension_id, instance_id, subject, metadata)
values ('a', 'written', 's.w', '{}'), ('a', 'found', 's.f', '{"discovered": true}');

create function pg_temp.attempt(who name, statement text) returns text language plpgsql as $$
begin
    begin
        execute format('set local role %I', who);
        execute statement;
        raise sqlstate 'XX999';
    exception
        when sqlstate 'XX999' then return 'yes';
        when insufficient_privilege then return '-';
    end;
end;
$$;

create temporary table attempts (n integer generated always as identity, statement text);
insert into attempts (statement) values
    ('select from extensions'),
    ('select from extension_versions'),
    ('select from extension_instances'),
    ('select from extension_policies'),
    ('select from extension_health'),
    ('select from extension_version_health'),
    ('select from extension_instance_health'),
    ('select from extension_breaker_events'),
    ('select from extension_metrics'),
    ('select old_values from extension_audit_log'),
    ('select from extension_target_state'),
    ('select from extension_registry_grants'),
    ('select ext_lookup(''a'')'),
    ('select ext_lookup_by_type(''pre'')'),
    ('select ext_versions(''a'')'),
    ('select ext_instances(''a'')'),
    ('select ext_health(''a'')'),
    ('select ext_health_all()'),
    ('select ext_health_summary()'),
    ('select ext_registry_status()'),
    ('select from ext_top'),
    ('select from extension_changes'),
    ('select ext_policy_uses(''a'')'),
    ('select ext_restore(''a'', now() + interval ''1 hour'')'),
    ('select ext_advice()'),
    ('select ext_export()'),
    ('select ext_explain(''a'')'),
    ('select ext_select(''a'')'),
    ('select ext_select_many(array[''a''], array[''{}'']::jsonb[])'),
    ('select ext_report(''a'', ''success'', 1)'),
    ('select ext_report_many(array[0], array[''success''], array[1], array[0])'),
    ('insert into extensions (id, type, subject) values (''b'', ''pre'', ''s.b'')'),
    ('update extensions set timeout_ms = 100'),
    ('update extensions set enabled = false'),
    ('update extensions set version = ''v7'''),
    ('update extensions set id = ''q'''),
    ('delete from extensions'),
    ('truncate extensions cascade'),
    ('insert into extension_versions (id, version, subject, timeout_ms, retry) values (''a'', ''v2'', ''s'', 100, 0)'),
    ('update extension_versions set routing_rules = ''{}'''),
    ('delete from extension_versions'),
    ('insert into extension_instances (extension_id, instance_id, subject) values (''a'', ''i'', ''s'')'),
    ('update extension_instances set weight = 1'),
    ('delete from extension_instances'),
    ('update extension_instances set health_status = ''unhealthy'', last_health_check = now()'),
    ('delete from extension_instances where metadata @> ''{"discovered": true}'''),
    ('insert into extension_instances (extension_id, instance_id, subject, version, weight, metadata, health_status)
        values (''a'', ''j'', ''s.j'', ''v1'', 50, ''{"discovered": true}'', ''healthy'')'),
    ('insert into extension_instances (extension_id, instance_id, subject, metadata) values (''a'', ''j'', ''s.j'', null)'),
    ('insert into extension_instances (extension_id, instance_id, subject, draining, metadata)
        values (''a'', ''j'', ''s.j'', true, ''{"discovered": true}'')'),
    ('update extension_health set slow_call_ms = 1'),
    ('select ext_breaker_reset(''a'')'),
    ('select ext_breaker_force(''a'', ''forced_closed'')'),
    ('insert into extension_policies (tenant_id, policy_id, document) values (''t'', ''p'', ''{}'')'),
    ('delete from extension_policies'),
    ('select ext_register(''{"id": "a", "type": "pre", "subject": "s.z"}'')'),
    ('select ext_register(''{"id": "a", "type": "pre", "subject": "s.z", "enabled": false}'')'),
    ('select ext_register(''{"id": "a", "type": "pre", "subject": "s", "versions": [{"version": "v2", "subject": "s"}]}'')'),
    ('select ext_import(''{}'')'),
    ('select ext_reload()'),
    ('select * from ext_repair()'),
    ('select ext_grant(''regress_public'', ''admin'')'),
    ('select ext_revoke(''regress_admin'', ''admin'')'),
    ('insert into extension_audit_log (extension_id, action, changed_by) values (''a'', ''create'', ''somebody'')'),
    ('truncate extension_audit_log'),
    ('alter table extensions disable trigger audit'),
    ('update extension_audit_log set action = ''create'''),
    ('delete from extension_audit_log'),
    ('select ext_invoke(''a'', ''{}'')'),
    ('insert into extension_invocations (extension_id, payload, state) values (''a'', ''{}'', ''queued'')'),
    ('select payload from extension_invocations'),
    ('update extension_invocations set state = ''queued'''),
    ('delete from extension_invocations'),
    ('update extension_publications set event_id = 0'),
    ('create temporary table mine (latency hdr)');
select
    a.statement,
    pg_temp.attempt('regress_public', a.statement) as public,
    pg_temp.attempt('regress_viewer', a.statement) as viewer,
    pg_temp.attempt('regress_operator', a.statement) as operator,
    pg_temp.attempt('regress_admin', a.statement) as admin,
    pg_temp.attempt('regress_bridge', a.statement) as bridge
from attempts a
order by a.n;

-- A level that is taken leaves what another gives.
select ext_grant('regress_viewer', 'bridge');
select ext_revoke('regress_viewer', 'viewer');
select pg_temp.attempt('regress_viewer', 'select from extension_metrics') as metrics,
    pg_temp.attempt('regress_viewer', 'select ext_lookup(''a'')') as lookup,
    pg_temp.attempt('regress_viewer', 'select ext_select(''a'')') as decide;
select ext_revoke('regress_viewer', 'bridge');
select pg_temp.attempt('regress_viewer', 'select ext_lookup(''a'')') as lookup;
select ext_revoke('regress_viewer', 'bridge');
drop role regress_viewer;

-- Given once more, as an update script does: at the end of its transaction.
revoke select on extensions from regress_bridge;
select _ext_apply_grants();
set constraints all immediate;
select pg_temp.attempt('regress_bridge', 'select from extensions') as again;

-- Row security that a DBA adds limits what tables and functions show; views show all, and decisions read all.
create role regress_reader;
select ext_grant('regress_reader', 'viewer');
insert into extensions (id, type, subject, metadata)
values ('mine', 'pre', 's', '{"team": "blue"}'), ('theirs', 'pre', 's', '{"team": "red"}');
alter table extensions enable row level security;
create policy blue on extensions for select to regress_reader using (metadata ->> 'team' = 'blue');
set local role regress_reader;
select id from extensions order by id;
select id from ext_lookup('mine') union all select id from ext_lookup('theirs');
select extension_id from extension_health order by 1;
select extension from ext_top order by 1;
set local role regress_bridge;
select id from extensions;
select extension_id, allowed from ext_select('mine') union all select extension_id, allowed from ext_select('theirs');
reset role;

rollback;
