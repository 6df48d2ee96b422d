-- Instances that calls may go to, and whether they were last looked at longer ago than so many seconds.
select i.extension_id::pg_catalog.text, i.instance_id::pg_catalog.text, i.subject::pg_catalog.text,
    i.health_status::pg_catalog.text,
    coalesce(i.last_health_check < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1::pg_catalog.float8), true),
    i.metadata
from @extschema@.extension_instances i
where i.enabled and not i.draining and i.health_status is not null
