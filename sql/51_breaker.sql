-- Breakers by hand: ext_breaker_reset, and extension_health as something one can update.

create function @extschema@._ext_raise_reset(id text, version text) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    insert into @extschema@.extension_breaker_resets as r (extension_id, version, epoch, changed_by)
    values (_ext_raise_reset.id, _ext_raise_reset.version, 1, session_user)
    on conflict (extension_id, version) do update
    set epoch = r.epoch + 1, changed_by = excluded.changed_by, changed_at = excluded.changed_at
$$;

comment on function @extschema@._ext_raise_reset(text, text) is
    'Asks for the reset of a version''s breaker (empty: of all versions), which happens at commit.';

create function @extschema@.ext_breaker_reset(id text, version text default null) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    names text;
begin
    if not exists (select from @extschema@.extensions e where e.id = ext_breaker_reset.id) then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s is not registered', coalesce(to_json(left(id, 100))::text, 'NULL')),
            hint = 'See the registered ones with: select id from extensions.';
    end if;

    if version is null then
        perform @extschema@._ext_raise_reset(id, '');
        return (select l.circuit_breaker_state from @extschema@._ext_live_extension(id) l);
    end if;

    select string_agg(l.version, ', ') into names from @extschema@._ext_live_versions(id) l;
    if not exists (
        select from @extschema@._ext_live_versions(id) l where l.version = ext_breaker_reset.version
    ) then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s has no version %s', to_json(id), to_json(left(version, 100))),
            hint = format('It has %s.', names);
    end if;
    perform @extschema@._ext_raise_reset(id, version);
    return (
        select l.circuit_breaker_state from @extschema@._ext_live_versions(id) l
        where l.version = ext_breaker_reset.version
    );
end;
$$;

comment on function @extschema@.ext_breaker_reset(text, text) is
    'Closes the breaker of one version, or of all versions, and clears its window; returns the new state. Counts in the metrics stay.';

create function @extschema@.ext_breaker_force(id text, mode text, version text default null) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from @extschema@.extensions e where e.id = ext_breaker_force.id) then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s is not registered', coalesce(to_json(left(id, 100))::text, 'NULL')),
            hint = 'See the registered ones with: select id from extensions.';
    end if;
    if mode is null or mode <> all (array['auto', 'forced_open', 'forced_closed', 'metrics_only']) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('unknown breaker mode %s', coalesce(to_json(left(mode, 100))::text, 'NULL')),
            hint = 'Modes are auto, forced_open, forced_closed and metrics_only.';
    end if;

    if version is null then
        insert into @extschema@.extension_health_settings as s (extension_id, breaker_mode)
        values (id, mode)
        on conflict (extension_id) do update set breaker_mode = excluded.breaker_mode;
        return (select l.circuit_breaker_state from @extschema@._ext_live_extension(id) l);
    end if;

    update @extschema@.extension_versions v
    set breaker_mode = mode
    where v.id = ext_breaker_force.id and v.version = ext_breaker_force.version;
    if not found then
        raise exception using
            errcode = 'undefined_object',
            message = format('extension %s has no version %s in extension_versions',
                to_json(id), to_json(left(version, 100))),
            hint = 'Without a version the mode is set for the extension, and so for every version that has none of its own.';
    end if;
    return (
        select l.circuit_breaker_state from @extschema@._ext_live_versions(id) l
        where l.version = ext_breaker_force.version
    );
end;
$$;

comment on function @extschema@.ext_breaker_force(text, text, text) is
    'Takes the decision from the breaker of one version, or of the extension (forced_open, forced_closed, metrics_only), or gives it back (auto); returns the new state.';

-- An UPDATE writes those settings that it changes, so that two of them at once do not undo each other.
create function @extschema@._ext_health_update() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    settings constant text[] := array[
        'circuit_breaker_failure_threshold', 'circuit_breaker_failure_min_rate', 'circuit_breaker_error_rate_threshold',
        'circuit_breaker_minimum_requests', 'circuit_breaker_window_seconds', 'circuit_breaker_timeout_seconds',
        'slow_call_ms', 'slow_call_rate_threshold', 'half_open_max_requests', 'breaker_mode',
        'ejection_consecutive_failures', 'max_ejection_percent'];
    changed constant text[] := array(
        select n.key from jsonb_each(to_jsonb(new)) n where n.value is distinct from to_jsonb(old) -> n.key);
begin
    if 'circuit_breaker_state' = any (changed) and new.circuit_breaker_state is distinct from 'closed' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('circuit_breaker_state can only be set to ''closed'', not to %s',
                coalesce(quote_literal(new.circuit_breaker_state), 'NULL')),
            hint = format('To open a breaker by hand: SELECT ext_breaker_force(%L, ''forced_open'');', old.extension_id);
    end if;

    if 'circuit_breaker_opened_at' = any (changed)
        and not (new.circuit_breaker_opened_at is null and new.circuit_breaker_state = 'closed')
    then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'cannot update column circuit_breaker_opened_at of extension_health: it is measured',
            hint = 'It may be set to NULL together with circuit_breaker_state = ''closed''.';
    end if;

    if 'extension_id' = any (changed) then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'cannot update column extension_id of extension_health',
            hint = format('UPDATE extensions SET id = %L WHERE id = %L; renames it.', new.extension_id, old.extension_id);
    end if;

    if changed && settings then
        perform @extschema@._ext_put('@extschema@.extension_health_settings',
            jsonb_build_object('extension_id', new.extension_id),
            (
                select jsonb_object_agg(n.key, n.value)
                from jsonb_each(to_jsonb(new)) n
                where n.key = any (changed) and n.key = any (settings)
            ));
    end if;

    if 'circuit_breaker_state' = any (changed) then
        perform @extschema@._ext_raise_reset(new.extension_id, '');
    end if;

    -- What RETURNING shows is what the view shows now.
    select h.* into new from @extschema@.extension_health h where h.extension_id = old.extension_id;
    return new;
end;
$$;

comment on function @extschema@._ext_health_update() is
    'Trigger: writes the changed settings of extension_health; circuit_breaker_state = ''closed'' resets all versions at commit.';

create function @extschema@._ext_health_measured() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = 'cannot update what is measured in extension_health',
        detail = format('Measured are %s.', (
            select string_agg(a.attname, ', ' order by a.attnum)
            from pg_trigger t
            join pg_attribute a on a.attrelid = t.tgrelid and a.attnum = any (t.tgattr)
            where t.tgrelid = tg_relid and t.tgname = tg_name)),
        hint = 'The settings columns can be updated, and circuit_breaker_state can be set to ''closed''.';
end;
$$;

comment on function @extschema@._ext_health_measured() is 'Trigger: refuses an UPDATE of the measured columns of extension_health.';

create function @extschema@._ext_health_refuse() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = case tg_op
            when 'INSERT' then 'cannot insert into extension_health: every registered extension is in it'
            else 'cannot delete from extension_health: every registered extension is in it' end,
        hint = case tg_op
            when 'INSERT' then 'INSERT INTO extensions registers one; UPDATE extension_health changes its settings.'
            else 'DELETE FROM extensions removes one; SELECT ext_breaker_reset(id) resets its breakers.' end;
end;
$$;

comment on function @extschema@._ext_health_refuse() is 'Trigger: refuses INSERT and DELETE on extension_health.';

-- For the statement, since a row does not tell that a column was assigned what it had.
create trigger measured before update of
        last_success, last_failure, success_count, failure_count, success_rate, avg_latency_ms, p50_latency_ms,
        p95_latency_ms, p99_latency_ms, last_latency_ms, latency_samples, latency_sum, latency_samples_window_start,
        half_open_requests_count, open_versions, updated_at
    on @extschema@.extension_health
    for each statement execute function @extschema@._ext_health_measured();
create trigger update_settings instead of update on @extschema@.extension_health
    for each row execute function @extschema@._ext_health_update();
create trigger refuse instead of insert or delete on @extschema@.extension_health
    for each row execute function @extschema@._ext_health_refuse();
