-- A row like that of a decision, without a decision: 13 constants of its types and sizes.
\set id random(1, :extensions)
select '42'::text as extension_id, 'pre'::text as type, 'v2'::text as version, 'a'::text as instance_id,
    'bench.service.42.a'::text as subject, 5000 as timeout_ms, 0 as retry, '{}'::jsonb as config, true as allowed,
    'ok'::text as reason, null::integer as retry_after_ms, 1290562768235219903::bigint as ticket,
    8586148034375825625::bigint as epoch;
