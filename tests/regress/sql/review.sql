-- ext_validate and ext_diff: documents looked at before they are registered.
\set ON_ERROR_ROLLBACK on
\set VERBOSITY terse
begin;

-- All that is wrong with the document of one extension.
select path, severity, problem from ext_validate('{
    "id": "x", "type": "pre", "subject": "s..x", "colour": "red", "timeout_ms": 9, "retry": 1.5, "instances": {},
    "health": {"breaker_mode": "sometimes", "slow_call_ms": -1, "success_count": 5},
    "versions": [
        {"version": "v1"},
        {"version": "v1", "subject": "s", "rollout_percent": 101, "breaker_mode": "auto", "a b": 1,
            "routing_rules": {"tenant_id": {"like": "t"}, "plan": {}, "user.id": [[]], "region": "eu"}},
        5]}');
select * from ext_validate('{"id": "x", "type": "filter", "subject": "s"}');

-- Of a whole one.
select path, severity, problem from ext_validate('{
    "colour": 1,
    "extensions": [
        {"id": "x", "type": "pre", "subject": "s"},
        {"id": "z z", "type": "pre", "subject": "s"},
        {"id": "x", "type": "pre", "subject": "s", "instances": [{"instance_id": "i"}, {"instance_id": "j", "subject": "s", "weight": 101}]},
        null],
    "policies": [
        {"tenant_id": "t", "policy_id": "p", "document": {
            "pre": [{"id": "a", "mode": "must"}, {"id": "x"}, {}], "providers": {}, "sticky": {"ttl": "long"}, "prae": 1}},
        {"tenant_id": "t", "policy_id": "p"}]}');

-- What is no document.
select path, problem, hint from ext_validate(null);
select path, problem, hint from ext_validate('[]');
select path, problem, hint from ext_validate('{}');
select path, problem, hint from ext_validate('{"extensions": 1}');

-- Stored, but surely not meant.
select ext_register('{"id": "known", "type": "post", "subject": "s",
    "versions": [{"version": "v2", "subject": "s2"}, {"version": "v3", "subject": "s3", "routing_rules": {"a": []}}]}') is not null as registered;
select path, severity, problem, hint from ext_validate('{
    "extensions": [
        {"id": "x", "type": "pre", "subject": "s", "metadata": {"allowed_tenants": "t1"},
            "versions": [
                {"version": "v1", "subject": "s", "routing_rules": {"a": []}},
                {"version": "v2", "subject": "s", "routing_rules": {"tenant_id": [], "b": 1}},
                {"version": "v3", "subject": "s", "rollout_percent": 0},
                {"version": "v4", "subject": "s", "rollout_percent": 0, "enabled": false}],
            "instances": [
                {"instance_id": "i", "subject": "s", "version": "v9"},
                {"instance_id": "j", "subject": "s", "version": "v4"},
                {"instance_id": "k", "subject": "s", "version": "v9", "enabled": false}]},
        {"id": "known", "type": "post", "subject": "s",
            "instances": [{"instance_id": "i", "subject": "s", "version": "v3"}, {"instance_id": "j", "subject": "s", "version": "v4"}]},
        {"id": "y", "type": "pre", "subject": "s", "metadata": {"allowed_tenants": ["t1", 2]}},
        {"id": "z", "type": "pre", "subject": "s", "metadata": {"allowed_tenants": ["t1"]}}],
    "policies": [
        {"tenant_id": "t", "policy_id": "p", "document": {
            "pre": [{"id": "x"}, {"id": "known"}],
            "validators": [{"id": "nobody"}],
            "providers": ["nobody", {"name": "x"}],
            "fallbacks": [{"when": {"status": "timeout"}, "to": "known"}],
            "post": [{"id": "known"}]}},
        {"tenant_id": "t", "policy_id": "q", "enabled": false, "document": {"pre": [{"id": "nobody"}]}}]}');
-- The row that would be is judged, not what the document says of it.
select path, problem from ext_validate('{"id": "known", "type": "post", "subject": "s", "versions": [{"version": "v3", "subject": "s4"}]}');
select path, problem from ext_validate('{"id": "known", "type": "post", "subject": "s", "versions": [{"version": "v3", "subject": "s4", "enabled": false}]}');
select count(*) from ext_validate(ext_export()) where severity = 'error';

-- What a document would change.
select ext_register('{"id": "a", "type": "pre", "subject": "s.a", "timeout_ms": 250, "config": {"k": 1}, "health": {"slow_call_ms": 5},
    "versions": [{"version": "v2", "subject": "s.a2"}], "instances": [{"instance_id": "i", "subject": "s.a"}]}') is not null as registered;
select * from ext_diff('{"id": "a", "type": "pre", "subject": "s.a"}');
select action, object, extension_id, name, key, old, new from ext_diff('{
    "id": "a", "type": "pre", "subject": "s.new", "timeout_ms": null, "config": null, "health": {"slow_call_ms": 7, "breaker_mode": "auto"},
    "versions": [{"version": "v2", "subject": "s.a2", "rollout_percent": 12.5}],
    "instances": [{"instance_id": "i", "subject": "s.a", "weight": 50, "draining": true}]}');
select
    action, object, name, key,
    case when key is null then old is not null else null end as whole_row, old ->> 'subject' as subject, new ->> 'timeout_ms' as timeout_ms
from ext_diff('{
    "id": "a", "type": "pre", "subject": "s.a", "timeout_ms": 99, "health": null,
    "versions": [{"version": "v3", "subject": "s.a3"}, {"version": "v4", "subject": "s.a3", "timeout_ms": 88}], "instances": []}');
select * from ext_diff('{
    "extensions": [{"id": "b", "type": "post", "subject": "s.b"}],
    "policies": [{"tenant_id": "t", "policy_id": "p", "document": {"pre": [{"id": "a"}]}}]}');
select count(*) from ext_diff(ext_export());
select * from ext_diff('{"extensions": [], "policies": []}');
select * from ext_diff(null);
\set VERBOSITY default
\set SHOW_CONTEXT never
select * from ext_diff('{"id": "a", "type": "pre", "subject": "s.a", "timeout_ms": 9}');
\set VERBOSITY terse

-- In a read-only transaction, as a viewer.
create role regress_viewer;
select ext_grant('regress_viewer', 'viewer');
savepoint before;
set local role regress_viewer;
set transaction read only;
select count(*) from ext_validate('{"policies": [{"tenant_id": "t", "policy_id": "p", "document": {"pre": [{"id": "a b"}]}}],
    "extensions": [{"id": "a", "type": "pre", "subject": "s", "retry": 11, "versions": [{"version": "v2", "subject": "s", "routing_rules": 1}]}]}');
select count(*) from ext_diff(ext_export());
select action, object, name, key, old, new from ext_diff('{"id": "a", "type": "pre", "subject": "s.a", "retry": 3}');
rollback to before;

-- A CHECK that the owner has added speaks as well.
alter table extensions add constraint no_retries_of_slow_calls check (retry = 0 or timeout_ms < 1000);
select path, problem, hint from ext_validate('{"id": "a", "type": "pre", "subject": "s.a", "retry": 1, "timeout_ms": 2000}');
select path, problem, hint from ext_validate('{"id": "a", "type": "pre", "subject": "s.a", "retry": 1}');
alter table extensions drop constraint no_retries_of_slow_calls;

-- They say what ext_register and ext_import do. What these do is tried here, and undone.
create function pg_temp.attempt(doc jsonb, out refusal text, out after jsonb) language plpgsql as $$
begin
    begin
        if doc ?| array['extensions', 'policies'] then
            perform ext_import(doc);
        else
            perform ext_register(doc);
        end if;
        after := ext_export();
        raise sqlstate 'XX999';
    exception
        when sqlstate 'XX999' then null;
        when invalid_parameter_value then
            get stacked diagnostics refusal = message_text;
    end;
end;
$$;

create function pg_temp.rows_of(doc jsonb) returns table (object text, extension_id text, name text, content jsonb) language sql as $$
    select 'extension', e ->> 'id', null, e - array['health', 'versions', 'instances'] from jsonb_array_elements(doc -> 'extensions') e
    union all
    select 'health', e ->> 'id', null, e -> 'health' from jsonb_array_elements(doc -> 'extensions') e where e -> 'health' <> 'null'
    union all
    select 'version', e ->> 'id', v ->> 'version', v from jsonb_array_elements(doc -> 'extensions') e, jsonb_array_elements(e -> 'versions') v
    union all
    select 'instance', e ->> 'id', i ->> 'instance_id', i from jsonb_array_elements(doc -> 'extensions') e, jsonb_array_elements(e -> 'instances') i
    union all
    select 'policy', null, (p ->> 'tenant_id') || '/' || (p ->> 'policy_id'), p from jsonb_array_elements(doc -> 'policies') p
$$;

create function pg_temp.changes(before jsonb, after jsonb)
returns table (action text, object text, extension_id text, name text, key text, old jsonb, new jsonb) language sql as $$
    with pair as (
        select
            coalesce(b.object, a.object) as object, coalesce(b.extension_id, a.extension_id) as extension_id,
            coalesce(b.name, a.name) as name, b.content as old, a.content as new
        from pg_temp.rows_of(before) b
        full join pg_temp.rows_of(after) a
            on (a.object, coalesce(a.extension_id, ''), coalesce(a.name, ''))
                = (b.object, coalesce(b.extension_id, ''), coalesce(b.name, ''))
    )
    select
        case when p.old is null then 'create' when p.new is null then 'delete' else 'update' end,
        p.object, p.extension_id, p.name, k.key,
        case when k.key is null then p.old else p.old -> k.key end,
        case when k.key is null then p.new else p.new -> k.key end
    from pair p
    left join lateral jsonb_each(p.new) k on p.old is not null and p.old -> k.key <> k.value
    where p.old is null or p.new is null or k.key is not null
$$;

-- A full document; then each of its values left out, or replaced by every fourth of these.
create temporary table base as select '{
    "extensions": [
        {"id": "a", "type": "pre", "subject": "s.a", "timeout_ms": 100, "retry": 1, "enabled": true, "version": "v1", "config": {"k": 1},
            "metadata": {"allowed_tenants": ["t"]}, "balancing": "round_robin", "hash_key": "user",
            "health": {
                "circuit_breaker_failure_threshold": 6, "circuit_breaker_failure_min_rate": 0.1,
                "circuit_breaker_error_rate_threshold": 0.6, "circuit_breaker_minimum_requests": 6,
                "circuit_breaker_window_seconds": 61, "circuit_breaker_timeout_seconds": 61, "slow_call_ms": 9,
                "slow_call_rate_threshold": 0.5, "half_open_max_requests": 4, "breaker_mode": "metrics_only",
                "ejection_consecutive_failures": 6, "max_ejection_percent": 51},
            "versions": [
                {"version": "v2", "subject": "s.a2", "timeout_ms": 90, "retry": 2, "config": {}, "metadata": {}, "enabled": true,
                    "routing_rules": {"tenant_id": ["t"], "plan": "pro"}, "rollout_percent": 50, "rollout_key": "user",
                    "circuit_breaker_failure_threshold": 7, "slow_call_ms": 8.5, "breaker_mode": "auto"},
                {"version": "v3", "subject": "s.a3"}],
            "instances": [
                {"instance_id": "i", "subject": "s.a", "weight": 10, "enabled": true, "health_status": "healthy", "version": "v2",
                    "draining": false, "metadata": {"zone": "z"}},
                {"instance_id": "j", "subject": "s.a"}]},
        {"id": "b", "type": "provider", "subject": "s.b"}],
    "policies": [
        {"tenant_id": "t", "policy_id": "p", "enabled": true, "document": {
            "pre": [{"id": "a", "mode": "required", "timeout_ms": 50, "when": {"plan": "pro"}}],
            "providers": [{"name": "b", "weight": 1}], "sticky": {"enabled": true, "ttl": "10m"}}},
        {"tenant_id": "t", "policy_id": "q", "document": {}}]}'::jsonb as doc;

create temporary table documents as
with recursive place (path, value) as (
    select '{}'::text[], doc from base
    union all
    select p.path || c.key, c.value
    from place p
    cross join lateral (
        select o.key, o.value from jsonb_each(case when jsonb_typeof(p.value) = 'object' then p.value end) o
        union all
        select (a.ordinality - 1)::text, a.value
        from jsonb_array_elements(case when jsonb_typeof(p.value) = 'array' then p.value end) with ordinality a
    ) c
),
value (n, value) as (
    values
        (0, 'null'::jsonb), (1, '-1'), (2, '1.5'), (3, '1e400'), (4, '""'), (5, '"v3"'), (6, '"j"'), (7, '"a b"'),
        (8, to_jsonb(repeat('x', 600))), (9, '[]'), (10, '{"x": {"like": 1}}'), (11, 'true')
)
select distinct changed.doc
from base
cross join (select p.path, row_number() over (order by p.path) as n from place p where p.path <> '{}') p
cross join lateral (
    select jsonb_set(base.doc, p.path, v.value) from value v where (p.n + v.n) % 4 = 0
    union all
    select base.doc #- p.path
) changed(doc);
-- And as documents of one extension.
insert into documents
select distinct d.doc #> '{extensions,0}' from documents d where jsonb_typeof(d.doc #> '{extensions,0}') = 'object';

-- Onto an empty registry, and onto one that has it all.
create function pg_temp.compare(out documents bigint, out refused bigint, out changing bigint, out disagree bigint, out different bigint)
language sql as $$
    with before as materialized (
        select ext_export() as doc
    ),
    tried as materialized (
        select
            d.doc,
            a.refusal,
            a.after,
            (select v.problem from ext_validate(d.doc) with ordinality v where v.severity = 'error' order by v.ordinality limit 1) as found
        from documents d
        cross join lateral pg_temp.attempt(d.doc) a
    )
    select
        count(*),
        count(t.refusal),
        count(*) filter (where t.after <> before.doc),
        count(*) filter (where t.refusal is distinct from t.found),
        count(*) filter (where case when t.refusal is null then
            (select array_agg(d::text order by d::text) from ext_diff(t.doc) d)
                is distinct from (select array_agg(c::text order by c::text) from pg_temp.changes(before.doc, t.after) c)
        end)
    from tried t
    cross join before
$$;
delete from extensions;
delete from extension_policies;
select * from pg_temp.compare();
select i.* from base, ext_import(doc) i;
select * from pg_temp.compare();

rollback;
