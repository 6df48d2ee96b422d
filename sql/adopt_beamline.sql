-- Takes over a database in the schema of the registry that ext_registry replaces: moves those tables aside, creates the
-- extension in their place, copies what they hold, and counts it. One transaction: where something cannot be, all of it is
-- said and nothing has changed.
--
--   psql -X -d beamline -f adopt_beamline.sql
--   psql -X -d beamline -v from=public -v aside=beamline_before -f adopt_beamline.sql
--
-- `from` is the schema the tables are in, `aside` the one they go to, which is made. The extension comes into `from`, so that
-- names go on meaning what they meant. For a superuser; the server must preload ext_registry.
--
-- Copied are extensions, versions, instances, the audit log and the settings of breakers, not counts and latencies: live
-- state begins afresh. Dropping the schema `aside` later ends it.

\set ON_ERROR_STOP on
\if :{?from} \else \set from public \endif
\if :{?aside} \else \set aside beamline_before \endif

begin;
select
    set_config('adopt.from', :'from', true) as set_from,
    set_config('adopt.aside', :'aside', true) as set_aside,
    set_config('client_min_messages', 'notice', true) as set_messages \gset

do $$
declare
    source constant text := current_setting('adopt.from');
    aside constant text := current_setting('adopt.aside');
    missing text;
    other text;
begin
    if exists (select from pg_extension where extname = 'ext_registry') then
        raise exception using
            message = 'ext_registry is there already',
            hint = 'What has been taken over is in the schema it was moved to; nothing is left to do.';
    end if;
    select string_agg(format('%I.%I', source, t), ', ') into missing
    from unnest(array['extensions', 'extension_versions', 'extension_instances', 'extension_health']) t
    where to_regclass(format('%I.%I', source, t)) is null;
    if missing is not null then
        raise exception using
            message = format('not a database of the replaced registry: %s is missing', missing),
            hint = 'psql -v from=SCHEMA names the schema that the tables are in.';
    end if;
    if exists (select from pg_namespace where nspname = aside) then
        raise exception using
            message = format('schema %I is there already', aside),
            hint = 'psql -v aside=SCHEMA names one that is to be made.';
    end if;
    -- Views and foreign keys of others follow the tables, and would look at what nobody keeps any more.
    for other in
        select format('%s %s', case c.relkind when 'm' then 'materialized view' else 'view' end, c.oid::regclass)
        from pg_depend d
        join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        join pg_class c on c.oid = r.ev_class
        join pg_class t on d.refclassid = 'pg_class'::regclass and t.oid = d.refobjid
        where t.relnamespace = source::regnamespace
            and t.relname in ('extensions', 'extension_versions', 'extension_instances', 'extension_health', 'extension_audit_log')
        union
        select format('foreign key %I of %s', f.conname, f.conrelid::regclass)
        from pg_constraint f
        join pg_class t on t.oid = f.confrelid
        join pg_class c on c.oid = f.conrelid
        where t.relnamespace = source::regnamespace
            and t.relname in ('extensions', 'extension_versions', 'extension_instances', 'extension_health')
            and c.relname not in ('extension_versions', 'extension_instances', 'extension_health', 'extension_audit_log')
        order by 1
    loop
        raise warning using
            message = format('%s goes on looking at the tables in %I', other, aside),
            hint = 'Make it anew when this is done.';
    end loop;
end
$$;

create schema :"aside";
alter table :"from".extensions set schema :"aside";
alter table :"from".extension_versions set schema :"aside";
alter table :"from".extension_instances set schema :"aside";
alter table :"from".extension_health set schema :"aside";
alter table if exists :"from".extension_audit_log set schema :"aside";

create extension ext_registry schema :"from";

-- Like the extension's order of versions: v10 after v9.
create function pg_temp.natural_order(version text) returns text
language sql immutable strict
as $$
    select string_agg(case when part[1] ~ '^[0-9]' then lpad(part[1], 40, '0') else part[1] end, '' order by place) collate "C"
    from regexp_matches(version, '[0-9]+|[^0-9]+', 'g') with ordinality parts (part, place)
$$;

do $$
declare
    source constant text := current_setting('adopt.from');
    aside constant text := current_setting('adopt.aside');
    tables constant text[] := array['extensions', 'extension_versions', 'extension_instances'];
    name text;
    key text;
    columns text;
    old record;
    amiss text[] := '{}';
    said text;
    remedy text;
    there bigint;
    here bigint;
begin
    -- The log first: what follows is logged as well.
    if to_regclass(format('%I.extension_audit_log', aside)) is not null then
        execute format(
            $insert$
                insert into %1$I.extension_audit_log
                    (id, extension_id, action, old_values, new_values, changed_by, changed_at, table_name)
                select id, extension_id, action, old_values, new_values, changed_by, coalesce(changed_at, '-infinity'), 'extensions'
                from %2$I.extension_audit_log
            $insert$,
            source, aside);
    end if;

    foreach name in array tables loop
        key := case name when 'extension_instances' then 'extension_id' else 'id' end;
        -- Not every such database has all columns.
        select string_agg(quote_ident(theirs.attname), ', ' order by theirs.attnum) into columns
        from pg_attribute theirs
        join pg_attribute ours on ours.attname = theirs.attname
            and ours.attrelid = format('%I.%I', source, name)::regclass
            and ours.attnum > 0 and not ours.attisdropped
        where theirs.attrelid = format('%I.%I', aside, name)::regclass
            and theirs.attnum > 0 and not theirs.attisdropped;
        for old in execute format('select o.ctid as place, o.%I as id, to_jsonb(o) as values from %I.%I o', key, aside, name) loop
            begin
                execute format(
                    'insert into %1$I.%2$I (%3$s) select %3$s from %4$I.%2$I where ctid = $1',
                    source, name, columns, aside
                ) using old.place;
            exception
                when foreign_key_violation then
                    amiss := amiss || format('%s %s: there is no such extension, or its row is amiss itself', name, old.id);
                when others then
                    get stacked diagnostics said = message_text, remedy = pg_exception_hint;
                    amiss := amiss || format('%s %s: %s%s', name, concat_ws(' ', old.id, old.values ->> 'version', old.values ->> 'instance_id'),
                        said, case when remedy <> '' then ' (' || remedy || ')' end);
            end;
        end loop;
    end loop;

    for old in execute format(
        $select$
            select extension_id as id,
                coalesce(circuit_breaker_failure_threshold, 5) as threshold,
                coalesce(circuit_breaker_error_rate_threshold, 0.5) as rate,
                coalesce(circuit_breaker_window_seconds, 60) as window_seconds,
                coalesce(half_open_max_requests, 3) as probes
            from %I.extension_health
        $select$,
        aside)
    loop
        continue when (old.threshold, old.rate, old.window_seconds, old.probes) = (5, 0.5, 60, 3);
        begin
            execute format(
                $insert$
                    insert into %I.extension_health_settings
                        (extension_id, circuit_breaker_failure_threshold, circuit_breaker_error_rate_threshold,
                            circuit_breaker_window_seconds, half_open_max_requests)
                    values ($1, $2, $3, $4, $5)
                $insert$,
                source)
            using old.id, old.threshold, old.rate, old.window_seconds, old.probes;
        exception
            when foreign_key_violation then
                amiss := amiss || format('extension_health %s: there is no such extension, or its row is amiss itself', old.id);
            when others then
                get stacked diagnostics said = message_text, remedy = pg_exception_hint;
                amiss := amiss || format('extension_health %s: %s%s', old.id, said, case when remedy <> '' then ' (' || remedy || ')' end);
        end;
    end loop;

    if amiss <> '{}' then
        raise exception using
            message = format('%s rows of the replaced registry cannot be taken over', cardinality(amiss)),
            detail = array_to_string(amiss, e'\n'),
            hint = 'Mend them where they are and run this again. Nothing has changed.';
    end if;
    foreach name in array tables || '{extension_audit_log}' loop
        continue when to_regclass(format('%I.%I', aside, name)) is null;
        execute format('select count(*) from %I.%I', aside, name) into there;
        -- Each row that has come is an entry of the log, too.
        execute format('select count(*) from %I.%I where %s', source, name,
            case name when 'extension_audit_log' then 'transaction_id is null' else 'true' end) into here;
        if there <> here then
            raise exception 'table %: % rows were there, % are here', name, there, here;
        end if;
        raise notice '%: % rows', name, here;
    end loop;
    execute format('select count(*) from %I.extension_health_settings', source) into here;
    raise notice 'settings of breakers that are not the defaults: %', here;

    for old in execute format(
        $select$ select extension_id as id, circuit_breaker_state as state from %I.extension_health
            where circuit_breaker_state is distinct from 'closed' order by 1 $select$,
        aside)
    loop
        raise warning 'the circuit breaker of % was %; it begins closed here', old.id, old.state;
    end loop;
    -- There the newest row was asked first, here the highest version is.
    for old in execute format(
        $select$
            select high.id, high.version as high, low.version as low
            from %1$I.extension_versions high
            join %1$I.extension_versions low on low.id = high.id and low.enabled and high.enabled
                and low.created_at > high.created_at
            where pg_temp.natural_order(high.version) > pg_temp.natural_order(low.version)
            order by 1, 2, 3
        $select$,
        aside)
    loop
        raise warning using
            message = format('extension %s: version %s was made after %s and was asked first; here the higher version is', old.id, old.low, old.high),
            hint = 'Where a request matches the rules of both, disable one of them or narrow its rules.';
    end loop;
    for old in execute format(
        $select$
            select a.grantee::regrole::text as role,
                bool_or(a.privilege_type in ('INSERT', 'UPDATE')) as writes,
                bool_or(a.privilege_type in ('DELETE', 'TRUNCATE')) as deletes
            from pg_class c, aclexplode(c.relacl) a
            where c.relnamespace = %L::regnamespace and a.grantee <> c.relowner and a.grantee <> 0
            group by a.grantee order by 1
        $select$,
        aside)
    loop
        raise warning using
            message = format('role %s had rights to the tables that were moved', old.role),
            hint = format('SELECT ext_grant(%L, %L); gives it the like here.', old.role,
                case when old.deletes then 'admin' when old.writes then 'operator' else 'viewer' end);
    end loop;
end
$$;

commit;
\echo Done. The former tables are in the schema :aside; DROP SCHEMA :"aside" CASCADE, once nobody misses them.
