-- Calls asked for from SQL: queued here, made by a bridge, answered here.
--
-- A row is visible to bridges once its transaction has committed. A bridge claims it by a lease (leased_by, leased_until) and
-- writes what came of it; a lease that runs out is free to others, so that every call is made at least once. Rows are gone
-- after 1 h (the worker deletes them), unfinished ones too. Never dumped.
--
-- Payloads and answers are read by who asked, and by the levels admin and bridge: row level security, by the role that is
-- current, so that a view or a function shows no more than its caller may see. (The owner and superusers see all, as ever.)
--
-- UPGRADE SCRIPT NEEDED, as in 20_registry.sql.

create table @extschema@.extension_invocations (
    id           bigint generated always as identity,
    extension_id varchar(255) not null,
    payload      jsonb not null,
    context      jsonb not null default '{}'::jsonb,
    asked_by     name not null default current_user,
    asked_at     timestamptz not null default clock_timestamp(),
    asked_in     xid8 not null default pg_current_xact_id(),
    state        varchar(32) not null default 'queued',
    attempts     integer not null default 0,
    leased_by    text,
    leased_until timestamptz,
    result       jsonb,
    error        jsonb,
    finished_at  timestamptz,
    constraint extension_invocations_pkey primary key (id),
    constraint extension_invocations_extension_id_check check (@extschema@._ext_check_id('extension_id', extension_id)),
    constraint extension_invocations_payload_check check (@extschema@._ext_check_object('payload', payload)),
    constraint extension_invocations_payload_size_check
        check (@extschema@._ext_check_int('size of payload in bytes', octet_length(payload::text), 2, 1048576)),
    constraint extension_invocations_context_check check (@extschema@._ext_check_object('context', context)),
    constraint extension_invocations_context_size_check
        check (@extschema@._ext_check_int('size of context in bytes', octet_length(context::text), 2, 65536)),
    constraint extension_invocations_state_check
        check (@extschema@._ext_check_one_of('state', state, array['queued', 'running', 'done', 'failed'])),
    constraint extension_invocations_unfinished_check
        check ((state in ('done', 'failed')) = (finished_at is not null))
);

create index extension_invocations_open_idx on @extschema@.extension_invocations (id) where finished_at is null;
create index extension_invocations_asked_at_idx on @extschema@.extension_invocations (asked_at);

comment on table @extschema@.extension_invocations is
    'Calls asked for by ext_invoke, and their results; read by who asked and by level admin, gone after 1 h, not dumped.';
comment on column @extschema@.extension_invocations.id is 'Ascending number.';
comment on column @extschema@.extension_invocations.extension_id is 'The extension to call.';
comment on column @extschema@.extension_invocations.payload is 'What it is sent. A JSON object of at most 1 MiB.';
comment on column @extschema@.extension_invocations.context is
    'What the decision looks at. A JSON object of at most 64 KiB; tenant_id, policy_id, trace_id and request_id also name the call.';
comment on column @extschema@.extension_invocations.asked_by is 'The role that asked.';
comment on column @extschema@.extension_invocations.asked_at is 'When, by the clock.';
comment on column @extschema@.extension_invocations.asked_in is 'The transaction that asked.';
comment on column @extschema@.extension_invocations.state is 'queued, running, done or failed.';
comment on column @extschema@.extension_invocations.attempts is 'How often a bridge has taken it up.';
comment on column @extschema@.extension_invocations.leased_by is 'The bridge that makes the call.';
comment on column @extschema@.extension_invocations.leased_until is 'Until when no other bridge takes it up.';
comment on column @extschema@.extension_invocations.result is 'The reply of the service, once done.';
comment on column @extschema@.extension_invocations.error is 'Why it failed: code, message, details, as callers on NATS are told.';
comment on column @extschema@.extension_invocations.finished_at is 'When it was done or had failed.';

-- A right that means: all rows.
create function @extschema@._ext_all_invocations() returns boolean
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select true $$;

comment on function @extschema@._ext_all_invocations() is
    'Whoever may execute this reads and changes every row of extension_invocations, as far as he may read and change the table.';

alter table @extschema@.extension_invocations enable row level security;

-- (pg_dump leaves the policies of an extension's tables to the extension, since the minor releases of November 2023. An older
-- one dumps them too; its restore says once for each that the policy exists already, and goes on.)
create policy own on @extschema@.extension_invocations
    using (asked_by = current_user);
create policy every on @extschema@.extension_invocations
    using ((select has_function_privilege('@extschema@._ext_all_invocations()'::regprocedure, 'execute')));

create function @extschema@.ext_invoke(id text, payload jsonb, context jsonb default '{}') returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    asked bigint;
begin
    if payload is null or context is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = format('%s is NULL', case when payload is null then 'payload' else 'context' end),
            hint = 'It must be a JSON object, such as ''{}''.';
    end if;
    if not exists (select from @extschema@.extensions e where e.id = ext_invoke.id) then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s is not registered', coalesce(to_json(left(id, 100))::text, 'NULL')),
            hint = 'See the registered ones with: select id from extensions.';
    end if;
    insert into @extschema@.extension_invocations (extension_id, payload, context)
    values (ext_invoke.id, ext_invoke.payload, ext_invoke.context)
    returning extension_invocations.id into asked;
    -- Bridges listen. They also look from time to time: a row that is inserted without this is found, too.
    perform pg_notify('ext_registry_invocations', '');
    return asked;
end;
$$;

comment on function @extschema@.ext_invoke(text, jsonb, jsonb) is
    'Queues a call of an extension, made by a bridge once the transaction has committed; returns its number for ext_invoke_result. It notifies, so the transaction cannot be prepared; one that must be inserts into extension_invocations itself.';

create function @extschema@.ext_invoke_result(
    id bigint,
    wait interval default '5 s',
    out state text,
    out result jsonb,
    out error jsonb,
    out attempts integer,
    out finished_at timestamptz
) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    asked_in xid8;
    until timestamptz;
    pause double precision := 0.005;
begin
    if wait is null or wait < '0' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('wait is %s', coalesce(wait::text, 'NULL')),
            hint = 'It must be 0 or longer; 0 does not wait.';
    end if;
    until := clock_timestamp() + least(wait, '1 h');
    -- Every statement of a volatile function sees what has been committed by then.
    loop
        select i.state, i.result, i.error, i.attempts, i.finished_at, i.asked_in
        into state, result, error, attempts, finished_at, asked_in
        from @extschema@.extension_invocations i
        where i.id = ext_invoke_result.id;
        if not found then
            raise exception using
                errcode = 'undefined_object',
                message = format('there is no call %s', coalesce(id::text, 'NULL')),
                hint = 'Calls are gone after 1 h, and are seen by the role that asked and by level admin only.';
        end if;
        exit when finished_at is not null;
        if asked_in = pg_current_xact_id_if_assigned() then
            raise exception using
                errcode = 'object_not_in_prerequisite_state',
                message = format('call %s was asked for in this transaction, and is not made before it commits', id),
                hint = 'COMMIT first; or, outside a transaction block, CALL ext_invoke_wait(...), which does all of it.';
        end if;
        exit when clock_timestamp() >= until;
        if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
            raise exception using
                errcode = 'invalid_transaction_state',
                message = format('a %s transaction never sees the result of a call that is not finished when it begins',
                    current_setting('transaction_isolation')),
                hint = 'Wait in a READ COMMITTED transaction, or ask with a wait of 0 in a new transaction each time.';
        end if;
        perform pg_sleep(least(pause, extract(epoch from until - clock_timestamp())::double precision));
        pause := least(pause * 1.5, 0.1);
    end loop;
end;
$$;

comment on function @extschema@.ext_invoke_result(bigint, interval) is
    'State and result of a call queued by ext_invoke; waits until it is done or has failed, at most that long. Not in the transaction that asked.';

-- No SET: a procedure that commits cannot have one. So its names are written out, and it uses no operator.
create procedure @extschema@.ext_invoke_wait(
    id text,
    payload jsonb,
    context jsonb default '{}',
    inout result jsonb default null
)
language plpgsql
as $$
declare
    asked constant pg_catalog.int8 := @extschema@.ext_invoke(id, payload, context);
    answer record;
begin
    commit;
    -- Each look is a transaction of its own: it sees the result under every isolation level, and holds no snapshot.
    for look in 1 .. 3000 loop
        select r.result, r.error, r.finished_at
        into answer
        from @extschema@.ext_invoke_result(asked, '0'::pg_catalog.interval) r;
        if answer.error is not null then
            raise exception using
                errcode = 'external_routine_exception',
                message = pg_catalog.jsonb_extract_path_text(answer.error, 'message'),
                detail = answer.error::pg_catalog.text,
                hint = 'The detail has the error as callers on NATS are told.';
        end if;
        if answer.finished_at is not null then
            result := answer.result;
            return;
        end if;
        commit;
        perform pg_catalog.pg_sleep(0.02);
    end loop;
    raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = pg_catalog.format('call %s has no result after a minute', asked),
        hint = pg_catalog.format('Is a bridge running? Ask again: SELECT * FROM ext_invoke_result(%s);', asked);
end;
$$;

comment on procedure @extschema@.ext_invoke_wait(text, jsonb, jsonb, jsonb) is
    'Queues a call, commits, waits for it (a minute at most) and gives its result; a call that fails is an error 38000 with the error object as its detail. Not within a transaction block.';
