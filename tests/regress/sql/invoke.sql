-- Calls queued from SQL: what is refused, who reads what, what transactions mean. (No bridge runs here: it is played by hand.)
\set ON_ERROR_ROLLBACK on
set client_min_messages = warning;

insert into extensions (id, type, subject) values ('echo', 'pre', 's.echo');

-- Refused, naming the value.
select ext_invoke('nobody', '{}');
select ext_invoke(null, '{}');
select ext_invoke('echo', null);
select ext_invoke('echo', '{}', null);
\set VERBOSITY default
select ext_invoke('echo', '[]');
select ext_invoke('echo', '{}', '"x"');
\set VERBOSITY terse
select ext_invoke('echo', jsonb_build_object('a', repeat('x', 1048576)));
select ext_invoke('echo', '{}', jsonb_build_object('a', repeat('x', 65536)));
\set VERBOSITY default
select count(*) from extension_invocations;

-- In the transaction that asked there is no result, also within a subtransaction.
begin;
select ext_invoke('echo', '{"text": "a"}', '{"tenant_id": "t"}') > 0 as asked;
select ext_invoke_result(id) from extension_invocations;
savepoint inner_one;
select ext_invoke_result(id, '0') from extension_invocations;
commit;

-- Nobody calls: queued, at once and after the wait.
select r.* from extension_invocations i, ext_invoke_result(i.id, '0') r;
select r.state from extension_invocations i, ext_invoke_result(id => i.id, wait => '10 ms') r;
select ext_invoke_result(0);
select ext_invoke_result(null);
select ext_invoke_result(1, '-1 s');
select ext_invoke_result(1, null);

-- A fixed snapshot would never see the end: an error instead of a wait in vain.
begin isolation level repeatable read;
select r.state from extension_invocations i, ext_invoke_result(i.id, '0') r;
select r.state from extension_invocations i, ext_invoke_result(i.id, '1 h') r;
rollback;

-- Done.
update extension_invocations set state = 'done', attempts = 1, result = '{"text": "b"}', finished_at = '2026-01-02';
select r.* from extension_invocations i, ext_invoke_result(i.id, '1 h') r;
begin isolation level serializable;
select r.state from extension_invocations i, ext_invoke_result(i.id, '1 h') r;
rollback;

-- Only a state that is one, and an end with its time.
update extension_invocations set state = 'lost', finished_at = null;
\set VERBOSITY terse
update extension_invocations set finished_at = null;
\set VERBOSITY default

-- It notifies, so it cannot be prepared; a plain row can.
listen ext_registry_invocations;
begin;
select ext_invoke('echo', '{}') > 0 as asked;
prepare transaction 'regress_invoke';
begin;
insert into extension_invocations (extension_id, payload) values ('echo', '{}');
prepare transaction 'regress_invoke';
commit prepared 'regress_invoke';
unlisten *;
select count(*) from extension_invocations;

-- Not within a transaction block.
begin;
call ext_invoke_wait('echo', '{}');
rollback;
call ext_invoke_wait('nobody', '{}');
delete from extension_invocations;

-- Who reads what: the caller his own, admin and bridge all.
create role regress_one;
create role regress_two;
create role regress_all;
create role regress_serving;
create role regress_viewing;
select ext_grant('regress_one', 'operator');
select ext_grant('regress_two', 'operator');
select ext_grant('regress_all', 'admin');
select ext_grant('regress_serving', 'bridge');
select ext_grant('regress_viewing', 'viewer');
set role regress_one;
select ext_invoke('echo', '{"of": "one"}') as one \gset
set role regress_two;
select ext_invoke('echo', '{"of": "two"}') as two \gset
select payload, asked_by from extension_invocations order by id;
select ext_invoke_result(:one, '0');
select ext_invoke_result(:two, '0');
-- Nor what looks at the row before the policy does.
create function pg_temp.leak(payload jsonb) returns boolean language plpgsql cost 0.0001 as $$
begin
    raise warning 'seen: %', payload;
    return true;
end;
$$;
select count(*) from extension_invocations where pg_temp.leak(payload);
-- Who asked and what came of it is not the caller's to write.
insert into extension_invocations (extension_id, payload, asked_by) values ('echo', '{}', 'regress_one');
insert into extension_invocations (extension_id, payload, state) values ('echo', '{}', 'done');
update extension_invocations set result = '{}';
delete from extension_invocations;
select _ext_all_invocations();
set role regress_all;
select payload, asked_by from extension_invocations order by id;
update extension_invocations set result = '{}';
set role regress_viewing;
select count(*) from extension_invocations;
select ext_invoke('echo', '{}');
set role regress_serving;
select payload, asked_by from extension_invocations order by id;
select ext_invoke('echo', '{}');
update extension_invocations set payload = '{}';
update extension_invocations set asked_by = 'regress_serving';
-- The way of a call.
with free as (
    select id from extension_invocations where finished_at is null and leased_until is null for update skip locked
)
update extension_invocations i
set state = 'running', attempts = attempts + 1, leased_by = 'me', leased_until = now() + interval '30 s'
from free
where i.id = free.id
returning i.payload, i.state, i.attempts;
update extension_invocations set state = 'failed', error = '{"code": "extension_timeout"}', finished_at = '2026-01-02'
where leased_by = 'me';
set role regress_one;
select * from ext_invoke_result(:one);
reset role;

-- A role that is given the table by hand sees its own still.
grant select on extension_invocations to regress_viewing;
set role regress_viewing;
select count(*) from extension_invocations;
reset role;
revoke select on extension_invocations from regress_viewing;

-- No dump carries it.
select extconfig::regclass[] @> array['extension_invocations'::regclass] as dumped,
    extconfig::regclass[] @> array['extension_publications'::regclass] as dumped
from pg_extension where extname = 'ext_registry';

select ext_revoke(role::regrole, level) from extension_registry_grants where role like 'regress%' order by role;
drop owned by regress_one, regress_two, regress_all, regress_serving, regress_viewing;
drop role regress_one, regress_two, regress_all, regress_serving, regress_viewing;
