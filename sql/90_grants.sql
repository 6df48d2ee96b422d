-- Who may do what. PUBLIC: nothing but to name the type hdr. The levels are given by ext_grant and recorded, so that an
-- update script can give what it has added:  select @extschema@._ext_apply_grants();
--
--   viewer    reads the registry, its health and its history; decides and reports nothing
--   operator  also registers and changes extensions, instances, settings and policies, resets breakers, decides, reports and
--             calls
--   admin     also deletes, enables and disables, renames, and owns versions with their routing rules
--   bridge    decides, reports and reads; makes queued calls and publishes events, and writes down how far it is with these;
--             writes the health of instances, and registers and removes those that services register themselves
--
-- No function runs with rights its caller lacks (the audit trigger excepted), so a level holds the rights to what its
-- functions and views use inside, too.

create function @extschema@._ext_privileges(level text) returns table (privilege text, kind text, object name)
language sql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select p.privilege, p.kind, p.object::name
    from (
        values
            ('viewer', 'select', 'table', 'extensions'),
            ('viewer', 'select', 'table', 'extension_versions'),
            ('viewer', 'select', 'table', 'extension_instances'),
            ('viewer', 'select', 'table', 'extension_policies'),
            ('viewer', 'select', 'table', 'extension_health_settings'),
            ('viewer', 'select', 'table', 'extension_health'),
            ('viewer', 'select', 'table', 'extension_version_health'),
            ('viewer', 'select', 'table', 'extension_instance_health'),
            ('viewer', 'select', 'table', 'extension_breaker_resets'),
            ('viewer', 'select', 'table', 'extension_breaker_events'),
            ('viewer', 'select', 'table', 'extension_metrics'),
            ('viewer', 'select', 'table', 'extension_audit_log'),
            ('viewer', 'select', 'table', '_ext_documents'),
            ('viewer', 'select', 'table', 'ext_top'),
            ('viewer', 'select', 'table', 'extension_changes'),
            ('viewer', 'execute', 'function', 'ext_policy_uses'),
            ('viewer', 'execute', 'function', 'ext_restore'),
            ('viewer', 'execute', 'function', '_ext_rows_at'),
            ('viewer', 'execute', 'function', 'ext_advice'),
            ('viewer', 'execute', 'function', 'ext_explain'),
            ('viewer', 'execute', 'function', 'ext_lookup'),
            ('viewer', 'execute', 'function', 'ext_lookup_by_type'),
            ('viewer', 'execute', 'function', 'ext_versions'),
            ('viewer', 'execute', 'function', 'ext_instances'),
            ('viewer', 'execute', 'function', 'ext_health'),
            ('viewer', 'execute', 'function', 'ext_health_all'),
            ('viewer', 'execute', 'function', 'ext_health_summary'),
            ('viewer', 'execute', 'function', 'ext_registry_status'),
            ('viewer', 'execute', 'function', 'ext_export'),
            ('viewer', 'execute', 'function', 'ext_validate'),
            ('viewer', 'execute', 'function', 'ext_diff'),
            ('viewer', 'execute', 'function', 'hdr_quantile'),
            ('viewer', 'execute', 'function', 'hdr_count'),
            ('viewer', 'execute', 'function', 'hdr_mean'),
            ('viewer', 'execute', 'function', 'hdr_max'),
            ('viewer', 'execute', 'function', 'hdr_merge'),
            ('viewer', 'execute', 'function', 'hdr_agg'),
            ('viewer', 'execute', 'function', 'hdr_buckets'),
            ('viewer', 'execute', 'function', 'ext_preview'),
            ('viewer', 'execute', 'function', 'ext_latency'),
            ('viewer', 'execute', 'function', 'ext_latency_histogram'),
            ('viewer', 'execute', 'function', 'ext_history'),
            ('viewer', 'execute', 'function', '_ext_live_since'),
            ('viewer', 'execute', 'function', '_ext_live_minutes'),
            ('viewer', 'execute', 'function', '_ext_minutes'),
            ('viewer', 'execute', 'function', '_ext_edges'),
            ('viewer', 'execute', 'function', '_ext_document_keys'),
            ('viewer', 'execute', 'function', '_ext_document_problems'),
            ('viewer', 'execute', 'function', '_ext_without_nulls'),
            ('viewer', 'execute', 'function', '_ext_duplicates'),
            ('viewer', 'execute', 'function', '_ext_path'),
            ('viewer', 'execute', 'function', '_ext_rules_problems'),
            ('viewer', 'execute', 'function', '_ext_policy_problems'),
            ('viewer', 'execute', 'function', '_ext_would_be'),
            ('viewer', 'execute', 'function', '_ext_row_problems'),
            ('viewer', 'execute', 'function', '_ext_review_row'),
            ('viewer', 'execute', 'function', '_ext_review_extension'),
            ('viewer', 'execute', 'function', '_ext_review'),
            ('viewer', 'execute', 'function', '_ext_doubts'),
            ('viewer', 'execute', 'function', '_ext_check_id'),
            ('viewer', 'execute', 'function', '_ext_check_version'),
            ('viewer', 'execute', 'function', '_ext_check_subject'),
            ('viewer', 'execute', 'function', '_ext_check_int'),
            ('viewer', 'execute', 'function', '_ext_check_number'),
            ('viewer', 'execute', 'function', '_ext_check_one_of'),
            ('viewer', 'execute', 'function', '_ext_check_object'),
            ('viewer', 'execute', 'function', '_ext_check_rules'),
            ('viewer', 'execute', 'function', '_ext_check_policy'),
            ('viewer', 'execute', 'function', '_ext_epoch'),
            ('viewer', 'execute', 'function', '_ext_live_extension'),
            ('viewer', 'execute', 'function', '_ext_live_versions'),
            ('viewer', 'execute', 'function', '_ext_shortfalls'),
            ('viewer', 'execute', 'function', '_ext_live_instance'),
            ('viewer', 'execute', 'function', '_ext_merged_latency'),
            ('viewer', 'execute', 'function', '_ext_status'),
            ('viewer', 'execute', 'function', '_ext_triggers'),
            ('viewer', 'execute', 'function', '_ext_triggers_amiss'),

            ('operator', 'insert', 'table', 'extensions'),
            ('operator',
                'update (type, subject, timeout_ms, retry, config, metadata, balancing, hash_key, updated_by)',
                'table', 'extensions'),
            ('operator', 'insert', 'table', 'extension_instances'),
            ('operator', 'update', 'table', 'extension_instances'),
            ('operator', 'insert', 'table', 'extension_health_settings'),
            ('operator', 'update', 'table', 'extension_health_settings'),
            ('operator', 'update', 'table', 'extension_health'),
            ('operator', 'insert', 'table', 'extension_breaker_resets'),
            ('operator', 'update', 'table', 'extension_breaker_resets'),
            ('operator', 'insert', 'table', 'extension_policies'),
            ('operator', 'update', 'table', 'extension_policies'),
            ('operator', 'execute', 'function', 'ext_select'),
            ('operator', 'execute', 'function', 'ext_select_many'),
            ('operator', 'execute', 'function', 'ext_report'),
            ('operator', 'execute', 'function', 'ext_report_many'),
            ('operator', 'execute', 'function', 'ext_stats_reset'),
            ('operator', 'execute', 'function', '_ext_stats_reset'),
            ('operator', 'execute', 'function', 'ext_breaker_force'),
            ('operator', 'execute', 'function', 'ext_breaker_reset'),
            ('operator', 'execute', 'function', 'ext_register'),
            ('operator', 'execute', 'function', 'ext_import'),
            ('operator', 'execute', 'function', 'ext_reload'),
            ('operator', 'execute', 'function', '_ext_raise_reset'),
            ('operator', 'execute', 'function', '_ext_read_document'),
            ('operator', 'execute', 'function', '_ext_check_unique'),
            ('operator', 'execute', 'function', '_ext_put'),
            ('operator', 'execute', 'function', '_ext_reload'),
            -- Who asked and what became of it is not the caller's to write.
            ('operator', 'insert (extension_id, payload, context)', 'table', 'extension_invocations'),
            ('operator', 'select', 'table', 'extension_invocations'),
            ('operator', 'execute', 'function', 'ext_invoke'),
            ('operator', 'execute', 'function', 'ext_invoke_result'),
            ('operator', 'execute', 'function', 'ext_invoke_wait'),

            ('admin', 'update', 'table', 'extensions'),
            ('admin', 'delete', 'table', 'extensions'),
            ('admin', 'insert', 'table', 'extension_versions'),
            ('admin', 'update', 'table', 'extension_versions'),
            ('admin', 'delete', 'table', 'extension_versions'),
            ('admin', 'delete', 'table', 'extension_instances'),
            ('admin', 'delete', 'table', 'extension_health_settings'),
            ('admin', 'delete', 'table', 'extension_policies'),
            -- A rename takes history along.
            ('admin', 'update (extension_id)', 'table', 'extension_breaker_events'),
            ('admin', 'update (extension_id)', 'table', 'extension_metrics'),
            ('admin', 'execute', 'function', '_ext_all_invocations'),

            ('bridge', 'select', 'table', 'extensions'),
            ('bridge', 'select', 'table', 'extension_versions'),
            ('bridge', 'select', 'table', 'extension_instances'),
            ('bridge', 'select', 'table', 'extension_policies'),
            ('bridge', 'select', 'table', 'extension_health_settings'),
            ('bridge', 'select', 'table', 'extension_health'),
            ('bridge', 'select', 'table', 'extension_version_health'),
            ('bridge', 'select', 'table', 'extension_instance_health'),
            ('bridge', 'select', 'table', 'extension_breaker_events'),
            ('bridge', 'select', 'table', '_ext_documents'),
            ('bridge', 'select (id, extension_id, action, table_name, changed_by, changed_at, transaction_id)', 'table',
                'extension_audit_log'),
            ('bridge', 'execute', 'function', 'ext_select'),
            ('bridge', 'execute', 'function', 'ext_select_many'),
            ('bridge', 'select', 'table', 'extension_metrics'),
            ('bridge', 'insert', 'table', 'extension_metrics'),
            ('bridge', 'update', 'table', 'extension_metrics'),
            ('bridge', 'select', 'table', 'extension_invocations'),
            ('bridge', 'update (state, attempts, leased_by, leased_until, result, error, finished_at)', 'table',
                'extension_invocations'),
            ('bridge', 'execute', 'function', '_ext_all_invocations'),
            ('bridge', 'execute', 'function', '_ext_check_id'),
            ('bridge', 'execute', 'function', '_ext_check_int'),
            ('bridge', 'execute', 'function', '_ext_check_object'),
            ('bridge', 'execute', 'function', '_ext_check_one_of'),
            ('bridge', 'update (health_status, last_health_check)', 'table', 'extension_instances'),
            -- Only of rows marked as discovered (30_triggers.sql).
            ('bridge',
                'insert (extension_id, instance_id, subject, version, weight, metadata, health_status, last_health_check)',
                'table', 'extension_instances'),
            ('bridge', 'delete', 'table', 'extension_instances'),
            ('bridge', 'execute', 'function', '_ext_check_subject'),
            ('bridge', 'execute', 'function', '_ext_check_version'),
            ('bridge', 'select', 'table', 'extension_publications'),
            ('bridge', 'insert', 'table', 'extension_publications'),
            ('bridge', 'update', 'table', 'extension_publications'),
            ('bridge', 'execute', 'function', 'ext_report_merge'),
            ('bridge', 'execute', 'function', '_ext_merge'),
            ('bridge', 'execute', 'function', 'hdr_merge'),
            ('bridge', 'execute', 'function', 'ext_preview'),
            ('bridge', 'execute', 'function', 'ext_explain'),
            ('bridge', 'execute', 'function', 'ext_report'),
            ('bridge', 'execute', 'function', 'ext_report_many'),
            ('bridge', 'execute', 'function', 'ext_lookup'),
            ('bridge', 'execute', 'function', 'ext_lookup_by_type'),
            ('bridge', 'execute', 'function', 'ext_versions'),
            ('bridge', 'execute', 'function', 'ext_instances'),
            ('bridge', 'execute', 'function', 'ext_health'),
            ('bridge', 'execute', 'function', 'ext_health_all'),
            ('bridge', 'execute', 'function', 'ext_health_summary'),
            ('bridge', 'execute', 'function', 'ext_registry_status'),
            ('bridge', 'execute', 'function', 'ext_export'),
            ('bridge', 'execute', 'function', '_ext_epoch'),
            ('bridge', 'execute', 'function', '_ext_live_extension'),
            ('bridge', 'execute', 'function', '_ext_live_versions'),
            ('bridge', 'execute', 'function', '_ext_live_instance'),
            ('bridge', 'execute', 'function', '_ext_merged_latency'),
            ('bridge', 'execute', 'function', '_ext_status'),
            ('bridge', 'execute', 'function', '_ext_triggers'),
            ('bridge', 'execute', 'function', '_ext_triggers_amiss')
    ) p(level, privilege, kind, object)
    where p.level = _ext_privileges.level
        or (p.level = 'viewer' and _ext_privileges.level in ('operator', 'admin'))
        or (p.level = 'operator' and _ext_privileges.level = 'admin')
$$;

comment on function @extschema@._ext_privileges(text) is 'The rights that a level consists of.';

create function @extschema@._ext_set_level(role name, level text, granted boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    p record;
begin
    if granted and not has_schema_privilege(role, '@extschema@'::regnamespace, 'usage') then
        execute format('grant usage on schema @extschema@ to %I', role);
    end if;
    for p in
        select given.privilege, given.kind, c.oid::regclass::text as object
        from @extschema@._ext_privileges(level) given
        join pg_class c on c.relname = given.object and c.relnamespace = '@extschema@'::regnamespace
        where given.kind = 'table'
        union all
        select given.privilege, 'routine', f.oid::regprocedure::text
        from @extschema@._ext_privileges(level) given
        join pg_proc f on f.proname = given.object and f.pronamespace = '@extschema@'::regnamespace
        join pg_depend member on member.classid = 'pg_proc'::regclass and member.objid = f.oid and member.deptype = 'e'
        join pg_extension x on x.oid = member.refobjid and x.extname = 'ext_registry'
        where given.kind = 'function'
    loop
        if granted then
            execute format('grant %s on %s %s to %I', p.privilege, p.kind, p.object, role);
        else
            execute format('revoke %s on %s %s from %I', p.privilege, p.kind, p.object, role);
        end if;
    end loop;
end;
$$;

comment on function @extschema@._ext_set_level(name, text, boolean) is
    'Gives the rights of a level to a role, or takes them. Usage of the schema, once given, stays.';

-- Rows of extension_registry_grants are what is meant; the trigger makes it so, also when a dump brings them back. It can be
-- put off to the end of the transaction, which _ext_apply_grants does: a GRANT within an extension's script would become one
-- of the extension's initial privileges; those are not dumped, and outlive the role. (So does a REVOKE there with what has
-- been granted before; hence it touches only what PUBLIC has.)
create function @extschema@._ext_apply_grant() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    kept text;
begin
    if not exists (select from pg_roles r where r.rolname = coalesce(new.role, old.role)) then
        if tg_op <> 'DELETE' then
            raise warning using
                message = format('role %s does not exist here: %s is not given to it', to_json(new.role::text), new.level),
                hint = 'Once it exists: SELECT ext_grant(role, level);';
        end if;
        return null;
    end if;
    if tg_op <> 'DELETE' then
        perform @extschema@._ext_set_level(new.role, new.level, true);
        return null;
    end if;
    perform @extschema@._ext_set_level(old.role, old.level, false);
    for kept in select g.level from @extschema@.extension_registry_grants g where g.role = old.role loop
        perform @extschema@._ext_set_level(old.role, kept, true);
    end loop;
    return null;
end;
$$;

comment on function @extschema@._ext_apply_grant() is 'Trigger: gives or takes the rights that a row of extension_registry_grants means.';

create constraint trigger apply after insert or update or delete on @extschema@.extension_registry_grants
    deferrable initially immediate
    for each row execute function @extschema@._ext_apply_grant();

create function @extschema@.ext_grant(role regrole, level text) returns void
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from pg_roles r where r.oid = ext_grant.role) then
        raise exception using
            errcode = 'undefined_object',
            message = format('role %s does not exist', ext_grant.role),
            hint = 'CREATE ROLE makes one; \du of psql lists them.';
    end if;
    insert into @extschema@.extension_registry_grants (role, level)
    values (pg_get_userbyid(ext_grant.role), ext_grant.level)
    on conflict on constraint extension_registry_grants_pkey do update
    set granted_by = excluded.granted_by, granted_at = excluded.granted_at;
end;
$$;

comment on function @extschema@.ext_grant(regrole, text) is
    'Gives a role a level: viewer, operator, admin or bridge. For the owner of the extension.';

create function @extschema@.ext_revoke(role regrole, level text) returns void
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
begin
    perform @extschema@._ext_check_one_of('level', level, array['viewer', 'operator', 'admin', 'bridge']);
    delete from @extschema@.extension_registry_grants g
    where g.role = pg_get_userbyid(ext_revoke.role) and g.level = ext_revoke.level;
    if not found then
        raise notice '% has not been given the level %', ext_revoke.role, ext_revoke.level;
    end if;
end;
$$;

comment on function @extschema@.ext_revoke(regrole, text) is
    'Takes a level from a role again; what other levels of the role give stays. For the owner of the extension.';

create function @extschema@._ext_apply_grants() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    member record;
begin
    for member in
        select f.oid::regprocedure::text as object
        from pg_proc f
        join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = f.oid and d.deptype = 'e'
        join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
        where has_function_privilege('public', f.oid, 'execute')
    loop
        execute format('revoke all on routine %s from public', member.object);
    end loop;
    for member in
        select t.oid::regtype::text as object
        from pg_type t
        join pg_depend d on d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
        join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
        -- (Row types of tables and views stay as Postgres makes them: pg_dump knows no rights on these.)
        left join pg_class c on c.oid = t.typrelid
        where t.typname <> 'hdr' and t.typelem = 0 and coalesce(c.relkind, 'c') = 'c'
            and has_type_privilege('public', t.oid, 'usage')
    loop
        execute format('revoke all on type %s from public', member.object);
    end loop;
    set constraints @extschema@.apply deferred;
    update @extschema@.extension_registry_grants set granted_at = granted_at;
end;
$$;

comment on function @extschema@._ext_apply_grants() is
    'Takes everything from PUBLIC but the type hdr, and gives the recorded levels once more at the end of the transaction. For the end of install and update scripts.';

select @extschema@._ext_apply_grants();

-- From here on the launcher knows this database.
create function @extschema@._ext_attach() returns void
language c volatile
as 'MODULE_PATHNAME', '_ext_attach';

comment on function @extschema@._ext_attach() is 'Tells the launcher of the workers about this database.';

revoke all on function @extschema@._ext_attach() from public;

select @extschema@._ext_attach();
