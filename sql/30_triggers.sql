-- Triggers of the registry tables: defaults and timestamps, invalidation, renames, advice. None of them uses NOTIFY, which
-- PREPARE TRANSACTION would refuse; the worker tells the bridges. Audit is in 31_audit.sql.

-- Defaults and timestamps. NULL is filled and nothing else is touched, so that a restored row stays as it was.

create function @extschema@._ext_fill_extension() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.config := coalesce(new.config, '{}');
    new.metadata := coalesce(new.metadata, '{}');
    if tg_op = 'INSERT' then
        new.created_at := coalesce(new.created_at, now());
        new.updated_at := coalesce(new.updated_at, now());
        new.created_by := coalesce(new.created_by, current_user);
    elsif new is distinct from old and new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
        if new.updated_by is not distinct from old.updated_by then
            new.updated_by := current_user;
        end if;
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_extension() is 'Trigger: defaults and timestamps of extensions.';

create function @extschema@._ext_fill_version() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.config := coalesce(new.config, '{}');
    new.metadata := coalesce(new.metadata, '{}');
    new.routing_rules := coalesce(new.routing_rules, '{}');
    if tg_op = 'INSERT' then
        new.created_at := coalesce(new.created_at, now());
        new.created_by := coalesce(new.created_by, current_user);
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_version() is 'Trigger: defaults and timestamps of extension_versions.';

create function @extschema@._ext_fill_instance() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.weight := coalesce(new.weight, 100);
    new.health_status := coalesce(new.health_status, 'unknown');
    new.metadata := coalesce(new.metadata, '{}');
    if tg_op = 'INSERT' then
        new.created_at := coalesce(new.created_at, now());
        new.updated_at := coalesce(new.updated_at, now());
    elsif new is distinct from old and new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_instance() is 'Trigger: defaults and timestamps of extension_instances.';

create function @extschema@._ext_fill_policy() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        new.created_at := coalesce(new.created_at, now());
        new.updated_at := coalesce(new.updated_at, now());
    elsif new is distinct from old and new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_policy() is 'Trigger: timestamps of extension_policies.';

create function @extschema@._ext_fill_settings() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        new.updated_at := coalesce(new.updated_at, now());
    elsif new is distinct from old and new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
    end if;
    return new;
end;
$$;

comment on function @extschema@._ext_fill_settings() is 'Trigger: timestamp of extension_health_settings.';

create trigger fill before insert or update on @extschema@.extensions
    for each row execute function @extschema@._ext_fill_extension();
create trigger fill before insert or update on @extschema@.extension_versions
    for each row execute function @extschema@._ext_fill_version();
create trigger fill before insert or update on @extschema@.extension_instances
    for each row execute function @extschema@._ext_fill_instance();
create trigger fill before insert or update on @extschema@.extension_policies
    for each row execute function @extschema@._ext_fill_policy();
create trigger fill before insert or update on @extschema@.extension_health_settings
    for each row execute function @extschema@._ext_fill_settings();

-- Invalidation: tells every session, at commit, that one extension (or all of them) has to be compiled anew. The first
-- column of each table is the extension's id. Named to fire before a user's triggers, so that these see decisions made with
-- the new row; ENABLE ALWAYS, or rows that arrive by logical replication would stay unseen for ever.

create function @extschema@._ext_invalidate() returns trigger
language c
as 'MODULE_PATHNAME', '_ext_invalidate';

comment on function @extschema@._ext_invalidate() is
    'Trigger: makes every session compile the row''s extension anew, from commit on, this transaction at once.';

create function @extschema@._ext_invalidate_all() returns trigger
language c
as 'MODULE_PATHNAME', '_ext_invalidate_all';

comment on function @extschema@._ext_invalidate_all() is
    'Trigger: makes every session compile all extensions anew, from commit on, this transaction at once.';

create trigger "!invalidate" after insert or update or delete on @extschema@.extensions
    for each row execute function @extschema@._ext_invalidate();
create trigger "!invalidate" after insert or update or delete on @extschema@.extension_versions
    for each row execute function @extschema@._ext_invalidate();
create trigger "!invalidate" after insert or update or delete on @extschema@.extension_instances
    for each row execute function @extschema@._ext_invalidate();
create trigger "!invalidate" after insert or update or delete on @extschema@.extension_health_settings
    for each row execute function @extschema@._ext_invalidate();
create trigger "!invalidate" after insert or update or delete on @extschema@.extension_breaker_resets
    for each row execute function @extschema@._ext_invalidate();

create trigger "!invalidate_truncate" after truncate on @extschema@.extensions
    for each statement execute function @extschema@._ext_invalidate_all();
create trigger "!invalidate_truncate" after truncate on @extschema@.extension_versions
    for each statement execute function @extschema@._ext_invalidate_all();
create trigger "!invalidate_truncate" after truncate on @extschema@.extension_instances
    for each statement execute function @extschema@._ext_invalidate_all();
create trigger "!invalidate_truncate" after truncate on @extschema@.extension_health_settings
    for each statement execute function @extschema@._ext_invalidate_all();
create trigger "!invalidate_truncate" after truncate on @extschema@.extension_breaker_resets
    for each statement execute function @extschema@._ext_invalidate_all();

alter table @extschema@.extensions
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";
alter table @extschema@.extension_versions
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";
alter table @extschema@.extension_instances
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";
alter table @extschema@.extension_health_settings
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";
alter table @extschema@.extension_breaker_resets
    enable always trigger "!invalidate",
    enable always trigger "!invalidate_truncate";

-- A renamed extension takes its history along. (Versions, instances, settings and resets follow by foreign key, live state
-- hangs on the uid; the audit log keeps the names of the time.) The new name may have minutes of an extension deleted
-- before: where both have one, the renamed one's stays under its old name.

create function @extschema@._ext_rename() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    update @extschema@.extension_breaker_events e set extension_id = new.id where e.extension_id = old.id;
    update @extschema@.extension_metrics m set extension_id = new.id
    where m.extension_id = old.id
        and not exists (
            select from @extschema@.extension_metrics taken
            where (taken.minute, taken.extension_id, taken.version, taken.instance_id)
                = (m.minute, new.id, m.version, m.instance_id)
        );
    return null;
end;
$$;

comment on function @extschema@._ext_rename() is 'Trigger: takes breaker events and metrics along with a new id.';

create trigger rename after update of id on @extschema@.extensions
    for each row when (old.id is distinct from new.id)
    execute function @extschema@._ext_rename();

-- Bridges register services that speak NATS micro, and remove them; a right to insert and delete cannot be limited to such
-- rows. Who may not change instances as such, which are the bridges, writes those marked {"discovered": true} only.

create function @extschema@._ext_discovered() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_table_privilege('@extschema@.extension_instances', 'update') then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('instance "%s" of "%s" is not one that a service registered itself',
                coalesce(new.instance_id, old.instance_id), coalesce(new.extension_id, old.extension_id)),
            hint = 'Without the right to update extension_instances only rows with {"discovered": true} in metadata can be inserted and deleted; ext_grant gives the level operator.';
    end if;
    return coalesce(new, old);
end;
$$;

comment on function @extschema@._ext_discovered() is
    'Trigger: keeps roles that may not update extension_instances to the rows that services registered themselves.';

create trigger discovered_inserted before insert on @extschema@.extension_instances
    for each row when ((new.metadata @> '{"discovered": true}') is not true)
    execute function @extschema@._ext_discovered();
create trigger discovered_deleted before delete on @extschema@.extension_instances
    for each row when ((old.metadata @> '{"discovered": true}') is not true)
    execute function @extschema@._ext_discovered();

-- Advice for people at psql. Two statements do less than one may think: UPDATE extensions ... WHERE version = 'v2' (versions
-- are rows of another table), and an update of a column that the extension's version rows have for themselves.

create function @extschema@._ext_advise() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    shadowed record;
begin
    if not exists (select from new_rows) then
        -- An upsert or MERGE that only inserted comes here too; it was not meant to match.
        if current_query() !~* '\m(on\s+conflict|merge)\M' then
            raise notice using
                message = 'no row of extensions matched',
                hint = 'Versions are rows of extension_versions: UPDATE extension_versions SET ... WHERE id = ... AND version = ...';
        end if;
        return null;
    end if;

    if not has_table_privilege('@extschema@.extension_versions', 'select') then
        return null;
    end if;
    for shadowed in
        select
            o.id,
            changed.columns,
            string_agg(v.version, ', ' order by v.version) as versions,
            count(*) over () as total
        from new_rows n
        join old_rows o using (uid)
        cross join lateral (
            select concat_ws(', ',
                case when n.subject is distinct from o.subject then 'subject' end,
                case when n.timeout_ms is distinct from o.timeout_ms then 'timeout_ms' end,
                case when n.retry is distinct from o.retry then 'retry' end,
                case when n.config is distinct from o.config then 'config' end) as columns
        ) changed
        join @extschema@.extension_versions v on v.id = n.id and v.enabled
        where changed.columns <> ''
        group by o.id, changed.columns
        order by o.id
        limit 3
    loop
        raise notice using
            message = format('%s of "%s": calls that go to version %s use that row''s own',
                shadowed.columns, shadowed.id, shadowed.versions),
            hint = 'UPDATE extension_versions for these; extensions serves where no row of extension_versions matches.';
    end loop;
    if shadowed.total > 3 then
        raise notice 'the same holds for % more', shadowed.total - 3;
    end if;
    return null;
end;
$$;

comment on function @extschema@._ext_advise() is
    'Trigger: a NOTICE where an UPDATE of extensions matched nothing, or changed what version rows shadow.';

create trigger advise after update on @extschema@.extensions
    referencing old table as old_rows new table as new_rows
    for each statement execute function @extschema@._ext_advise();
