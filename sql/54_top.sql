-- What an operator keeps on the screen: one line per extension, for \watch. psqlrc's :top has shorter headings, so that ids of
-- 27 characters fit into 100 columns.

create view @extschema@.ext_top as
select
    h.extension_id::varchar(40) as extension,
    case when e.enabled then h.circuit_breaker_state::text else 'disabled' end as state,
    h.latency_samples as calls_5m,
    round((h.latency_samples
        / greatest(1, extract(epoch from clock_timestamp() - h.latency_samples_window_start))::numeric), 1) as per_s,
    round((100 * h.success_rate)::numeric, 1) as ok_pct,
    round(h.p50_latency_ms::numeric, 1) as p50_ms,
    round(h.p95_latency_ms::numeric, 1) as p95_ms,
    round(h.p99_latency_ms::numeric, 1) as p99_ms,
    (select sum(v.in_flight) from @extschema@._ext_live_versions(h.extension_id) v)::bigint as in_flight
from @extschema@.extension_health h
join @extschema@.extensions e on e.id = h.extension_id
order by
    array_position(array['open', 'half_open'], h.circuit_breaker_state::text),
    h.latency_samples desc,
    h.extension_id;

comment on view @extschema@.ext_top is
    'One line per extension for \watch: state, traffic and latency of the last 5 minutes; open breakers first, then the busiest.';
comment on column @extschema@.ext_top.extension is 'The extension (the first 40 characters of its id).';
comment on column @extschema@.ext_top.state is 'closed, half_open or open, as in extension_health; disabled.';
comment on column @extschema@.ext_top.calls_5m is 'Calls with a latency in the last 5 minutes.';
comment on column @extschema@.ext_top.per_s is 'The same per second.';
comment on column @extschema@.ext_top.ok_pct is 'Successes in percent of the outcomes of the last 5 minutes.';
comment on column @extschema@.ext_top.p50_ms is 'Median latency of the last 5 minutes, in ms.';
comment on column @extschema@.ext_top.p95_ms is '95th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.ext_top.p99_ms is '99th percentile of the last 5 minutes, in ms.';
comment on column @extschema@.ext_top.in_flight is 'Calls decided and not yet reported.';
