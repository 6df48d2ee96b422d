-- As many columns, of the same types and about the same contents, as a decision has.
\set e random(:low, :high)
select '42'::text as extension_id, 'pre'::text as type, 'v2'::text as version, null::text as instance_id,
    'bench.42.v2'::text as subject, 1000 as timeout_ms, 0 as retry, '{}'::jsonb as config, true as allowed,
    'ok'::text as reason, null::integer as retry_after_ms, 2504845817764961211 as ticket, 1775262678130925935 as epoch;
