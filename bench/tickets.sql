-- Issues tickets until there is none left, to calls of the extensions 1 to `extensions` in turn, and returns the first of them:
-- the lowest of as many consecutive numbers as there are entries in the table of calls under way. That they are consecutive is
-- how an empty table happens to be filled; nothing promises it, so it is checked.
create function issue_all_tickets(extensions integer) returns bigint
language plpgsql
as $$
declare
    lowest bigint;
    highest bigint;
    batch record;
    entries record;
begin
    loop
        select min(nullif(d.ticket, 0)) as lowest, max(d.ticket) as highest
        into batch
        from generate_series(1, 131072) n
        cross join lateral ext_select((n % extensions + 1)::text, '{"tenant_id": "t2"}') d;
        lowest := least(lowest, batch.lowest);
        highest := greatest(highest, batch.highest);
        select in_flight_used as used, in_flight_total as total into entries from ext_registry_status();
        exit when entries.used = entries.total;
        if batch.lowest is null then
            raise 'no ticket to be had with % of % entries in use', entries.used, entries.total;
        end if;
    end loop;
    if highest - lowest <> entries.total - 1 then
        raise 'tickets % to % are not those of % consecutive entries', lowest, highest, entries.total
            using hint = 'Has the layout of tickets changed? Then figure 3 needs another way to know them.';
    end if;
    return lowest;
end;
$$;
