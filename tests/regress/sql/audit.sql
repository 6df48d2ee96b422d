-- The audit log: what is logged, who is named, what is not logged.
\set ON_ERROR_ROLLBACK on
begin;
set local application_name = 'regress/audit';

create temporary view log as
select extension_id, action, table_name, row_number() over (order by changed_at) as n,
    old_values, new_values, changed_by, changed_role, application_name, transaction_id
from extension_audit_log
where transaction_id = pg_current_xact_id();

insert into extensions (id, type, subject) values ('a', 'pre', 's.a');
insert into extension_versions (id, version, subject, timeout_ms, retry) values ('a', 'v2', 's.a2', 100, 0);
insert into extension_instances (extension_id, instance_id, subject) values ('a', 'i', 's.a');
update extension_health set slow_call_ms = 9 where extension_id = 'a';
update extensions set enabled = false;
update extensions set enabled = true;
update extension_versions set enabled = false;
update extensions set enabled = false, retry = 1;
select extension_id, action, table_name, old_values ->> 'retry' as old_retry, new_values ->> 'retry' as new_retry from log order by n;
select distinct changed_by = session_user as session_user, changed_role = session_user as role, application_name,
    transaction_id = pg_current_xact_id() as transaction
from log;

-- Health checks, timestamps and what changes nothing are not logged.
update extension_instances set last_health_check = now();
update extensions set updated_at = now();
update extensions set retry = retry;
select count(*) from log;

-- The role that was set is named beside who logged in, also below a function that runs as somebody else.
create role regress_registrar;
grant usage on schema public to regress_registrar;
select ext_grant('regress_registrar', 'operator');
create function raise_retry() returns void language sql security definer
    as 'update public.extensions set retry = retry + 1';
set local role regress_registrar;
update extensions set timeout_ms = 1000;
select raise_retry();
reset role;
select action, changed_by = session_user as session_user, changed_role from log order by n desc limit 2;

-- A rename stands under the new id, and what was logged before under the old one.
update extensions set id = 'b';
select extension_id, action, table_name, old_values ->> 'id' as old_id, new_values ->> 'id' as new_id
from log
where table_name = 'extensions'
order by n desc limit 1;
select extension_id, count(*) from log group by 1 order by 1;

-- The log outlives the extension, and TRUNCATE is no way around it.
delete from extensions;
select extension_id, action, table_name from log where action = 'delete' order by table_name;
insert into extensions (id, type, subject) values ('c', 'pre', 's.c'), ('d', 'pre', 's.d');
truncate extensions cascade;
select extension_id, action, old_values ->> 'subject' as subject from log where extension_id in ('c', 'd') order by n;

-- A dump brings its own log: rows that it restores are not logged again. Backdated rows of others are.
set local check_function_bodies = off;
insert into extensions (id, type, subject, created_at) values ('restored', 'pre', 's', '2001-01-01');
insert into extensions (id, type, subject) values ('written', 'pre', 's');
set local role regress_registrar;
insert into extensions (id, type, subject, created_at) values ('backdated', 'pre', 's', '2001-01-01');
reset role;
select extension_id, action from log where extension_id in ('restored', 'written', 'backdated') order by n;

rollback;
