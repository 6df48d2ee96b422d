-- The audit log: one entry per changed row of the registry.
--
-- The only functions here with rights their caller lacks (SECURITY DEFINER), so that who may change the registry need not
-- be able to write its log. Changes of last_health_check and the bookkeeping columns alone are not logged.

create function @extschema@._ext_audit() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    bookkeeping constant text[] := array['updated_at', 'updated_by', 'last_health_check'];
    key_column constant text := tg_argv[0];
    -- current_user is the owner in here; SET ROLE is still seen, and what a caller's own definer function is, is not asked.
    outer_role constant name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    old_row jsonb;
    new_row jsonb;
    action text;
begin
    if tg_op <> 'INSERT' then
        old_row := to_jsonb(old);
    end if;
    if tg_op <> 'DELETE' then
        new_row := to_jsonb(new);
    end if;

    if tg_op = 'INSERT' then
        -- A dump brings the log itself: do not log its rows a second time. pg_dump's scripts say so by this setting, and
        -- its rows are older than this transaction. For the owner only, who could disable the trigger as well.
        if current_setting('check_function_bodies') = 'off'
            and coalesce(new_row ->> 'created_at', new_row ->> 'updated_at')::timestamptz < transaction_timestamp()
            and pg_has_role(outer_role, (select c.relowner from pg_class c where c.oid = tg_relid), 'member')
        then
            return null;
        end if;
        action := 'create';
    elsif tg_op = 'DELETE' then
        action := 'delete';
    elsif old_row - bookkeeping = new_row - bookkeeping then
        return null;
    elsif (old_row - bookkeeping) - 'enabled' = (new_row - bookkeeping) - 'enabled' then
        action := case when (new_row ->> 'enabled')::boolean then 'enable' else 'disable' end;
    else
        action := 'update';
    end if;

    insert into @extschema@.extension_audit_log
        (extension_id, action, old_values, new_values, changed_by, changed_at, table_name, changed_role,
            application_name, transaction_id)
    values
        (coalesce(coalesce(new_row, old_row) ->> key_column, ''), action, old_row, new_row, session_user, clock_timestamp(),
            tg_table_name, outer_role, current_setting('application_name'), pg_current_xact_id());
    return null;
end;
$$;

comment on function @extschema@._ext_audit() is
    'Trigger: writes the change of a row into extension_audit_log; the argument names the column with the extension''s id, if there is one.';

create function @extschema@._ext_audit_truncate() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    key_column constant text := tg_argv[0];
    outer_role constant name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
    execute format(
        $insert$
            insert into @extschema@.extension_audit_log
                (extension_id, action, old_values, changed_by, changed_at, table_name, changed_role, application_name,
                    transaction_id)
            select %1$s, 'delete', to_jsonb(t), session_user, clock_timestamp(), $1, $2,
                current_setting('application_name'), pg_current_xact_id()
            from %2$I.%3$I t
        $insert$,
        case when key_column is null then quote_literal('') else format('t.%I', key_column) end, tg_table_schema, tg_table_name)
    using tg_table_name, outer_role;
    return null;
end;
$$;

comment on function @extschema@._ext_audit_truncate() is
    'Trigger: writes every row that a TRUNCATE removes into extension_audit_log, as deleted.';

create trigger audit after insert or update or delete on @extschema@.extensions
    for each row execute function @extschema@._ext_audit('id');
create trigger audit after insert or update or delete on @extschema@.extension_versions
    for each row execute function @extschema@._ext_audit('id');
create trigger audit after insert or update or delete on @extschema@.extension_instances
    for each row execute function @extschema@._ext_audit('extension_id');
create trigger audit after insert or update or delete on @extschema@.extension_health_settings
    for each row execute function @extschema@._ext_audit('extension_id');
create trigger audit after insert or update or delete on @extschema@.extension_policies
    for each row execute function @extschema@._ext_audit();

create trigger audit_truncate before truncate on @extschema@.extensions
    for each statement execute function @extschema@._ext_audit_truncate('id');
create trigger audit_truncate before truncate on @extschema@.extension_versions
    for each statement execute function @extschema@._ext_audit_truncate('id');
create trigger audit_truncate before truncate on @extschema@.extension_instances
    for each statement execute function @extschema@._ext_audit_truncate('extension_id');
create trigger audit_truncate before truncate on @extschema@.extension_health_settings
    for each statement execute function @extschema@._ext_audit_truncate('extension_id');
create trigger audit_truncate before truncate on @extschema@.extension_policies
    for each statement execute function @extschema@._ext_audit_truncate();
