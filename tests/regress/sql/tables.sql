-- The tables: columns as in the origin system, what they refuse, what they fill, what cascades.
\set ON_ERROR_ROLLBACK on
\set VERBOSITY terse
begin;

-- Columns that the origin system had: same type, default and nullability.
create schema origin;
create table origin.extension_versions (
    id VARCHAR(255) NOT NULL,
    version VARCHAR(32) NOT NULL,
    subject VARCHAR(512) NOT NULL,
    timeout_ms INTEGER NOT NULL,
    retry INTEGER NOT NULL,
    config JSONB DEFAULT '{}'::jsonb,
    metadata JSONB DEFAULT '{}'::jsonb,
    routing_rules JSONB DEFAULT '{}'::jsonb,
    enabled BOOLEAN NOT NULL DEFAULT TRUE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (id, version)
);
create table origin.extension_instances (
    extension_id VARCHAR(255) NOT NULL,
    instance_id VARCHAR(255) NOT NULL,
    subject VARCHAR(512) NOT NULL,
    weight INTEGER DEFAULT 100 CHECK (weight >= 0 AND weight <= 100),
    enabled BOOLEAN NOT NULL DEFAULT TRUE,
    health_status VARCHAR(32) DEFAULT 'unknown' CHECK (health_status IN ('healthy', 'degraded', 'unhealthy', 'unknown')),
    last_health_check TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (extension_id, instance_id)
);
select o.table_name, o.column_name, o.data_type, e.data_type as here
from information_schema.columns o
left join information_schema.columns e
    on (e.table_schema, e.table_name, e.column_name) = ('public', o.table_name, o.column_name)
where o.table_schema = 'origin'
    and (o.data_type, o.character_maximum_length, o.column_default, o.is_nullable)
        is distinct from (e.data_type, e.character_maximum_length, e.column_default, e.is_nullable);
drop schema origin cascade;

select column_name, data_type, character_maximum_length as length, column_default, is_nullable
from information_schema.columns
where (table_schema, table_name) = ('public', 'extensions')
order by ordinal_position;

-- Defaults.
insert into extensions (id, type, subject) values ('a', 'pre', 'beamline.ext.pre.a.v1')
returning timeout_ms, retry, enabled, version, config, metadata, balancing, hash_key, created_by = current_user as by_me;
insert into extension_versions (id, version, subject, timeout_ms, retry) values ('a', 'v2', 'beamline.ext.pre.a.v2', 100, 0)
returning config, metadata, routing_rules, enabled, rollout_percent, rollout_key, breaker_mode;
insert into extension_instances (extension_id, instance_id, subject) values ('a', 'i1', 'beamline.ext.pre.a.v1')
returning weight, enabled, health_status, version, draining, metadata;

-- NULL is filled; what is given stays.
insert into extensions (id, type, subject, config, metadata, created_at, created_by)
values ('b', 'post', 'beamline.ext.post.b.v1', null, null, '2001-01-01Z', 'me')
returning config, metadata, created_at at time zone 'UTC' as created_at, created_by;
insert into extension_instances (extension_id, instance_id, subject, weight, health_status)
values ('b', 'i1', 'beamline.ext.post.b.v1', null, null)
returning weight, health_status;

-- updated_at and updated_by follow changes, and only changes.
update extensions set updated_at = '2001-01-01Z' where id = 'b';
update extensions set enabled = enabled where id = 'b' returning updated_at at time zone 'UTC' as updated_at, updated_by;
update extensions set enabled = false where id = 'b' returning updated_at = now() as now, updated_by = current_user as by_me;
update extensions set retry = 1, updated_by = 'you' where id = 'b' returning updated_by;

-- Refused, by name.
insert into extensions (id, type, subject) values ('a b', 'pre', 's');
insert into extensions (id, type, subject) values ('', 'pre', 's');
insert into extensions (id, type, subject) values (repeat('x', 256), 'pre', 's');
insert into extensions (id, type, subject) values ('c', 'filter', 's');
insert into extensions (id, type, subject) values ('c', 'pre', 'a.*');
insert into extensions (id, type, subject) values ('c', 'pre', '_INBOX.x');
insert into extensions (id, type, subject) values ('a', 'pre', 's');
update extensions set timeout_ms = 9;
update extensions set timeout_ms = 300001;
update extensions set retry = 11;
update extensions set version = 'v 1';
update extensions set config = '[]';
update extensions set balancing = 'random';
update extensions set hash_key = '';
update extension_versions set version = '';
update extension_versions set routing_rules = '[]';
update extension_versions set routing_rules = '{"tenant_id": {"like": "x"}}';
update extension_versions set rollout_percent = 100.01;
update extension_versions set rollout_percent = 'NaN';
update extension_versions set circuit_breaker_window_seconds = 3601;
update extension_versions set breaker_mode = 'ajar';
update extension_instances set weight = 101;
update extension_instances set health_status = 'sick';
update extension_instances set instance_id = 'i.1';
insert into extension_versions (id, version, subject, timeout_ms, retry) values ('nobody', 'v1', 's', 100, 0);
insert into extension_policies (tenant_id, policy_id, document) values ('t', 'p', '{"prae": []}');

-- A new id takes everything along; a deletion, too, but for history.
insert into extension_health_settings (extension_id, slow_call_ms) values ('a', 50);
insert into extension_metrics (minute, extension_id, success) values ('2026-01-01Z', 'a', 1), ('2026-01-02Z', 'a', 2);
insert into extension_metrics (minute, extension_id, success) values ('2026-01-01Z', 'z', 9);
insert into extension_breaker_events (extension_id, from_state, to_state) values ('a', 'closed', 'open');
create temporary table before as select uid from extensions where id = 'a';
update extensions set id = 'z' where id = 'a';
select uid = (select uid from before) as same_state from extensions where id = 'z';
select id, version from extension_versions;
select extension_id, instance_id from extension_instances order by 1;
select extension_id, slow_call_ms from extension_health_settings;
select minute at time zone 'UTC' as minute, extension_id, success from extension_metrics where extension_id in ('a', 'z') order by 1, 2;
select extension_id, to_state from extension_breaker_events where extension_id in ('a', 'z');
delete from extensions where id = 'z';
select count(*) from extension_versions;
select count(*) from extension_health_settings;
select count(*) from extension_metrics where extension_id in ('a', 'z');

-- Advice.
\set VERBOSITY default
insert into extension_versions (id, version, subject, timeout_ms, retry) values ('b', 'v2', 's', 100, 0);
update extensions set enabled = false where id = 'b' and version = 'v2';
update extensions set timeout_ms = 200, retry = 2 where id = 'b';
update extensions set metadata = '{"x": 1}' where id = 'b';
insert into extensions (id, type, subject) values ('new', 'pre', 's') on conflict (id) do update set subject = excluded.subject;

-- Everything has a comment, and pg_dump carries what it should.
select c.oid::regclass as relation, a.attname
from pg_class c
join pg_depend d on (d.classid, d.objid, d.deptype) = ('pg_class'::regclass, c.oid, 'e')
join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and c.relname not like '\_%'
where c.relkind in ('r', 'v') and (obj_description(c.oid, 'pg_class') is null or col_description(c.oid, a.attnum) is null)
    and (a.attnum is not null or obj_description(c.oid, 'pg_class') is null);
select p.oid::regprocedure as function
from pg_proc p
join pg_depend d on (d.classid, d.objid, d.deptype) = ('pg_proc'::regclass, p.oid, 'e')
join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
where obj_description(p.oid, 'pg_proc') is null;
select c.table_oid::regclass as dumped
from pg_extension x, unnest(x.extconfig) c(table_oid)
where x.extname = 'ext_registry'
order by c.table_oid::regclass::text collate "C";

rollback;
