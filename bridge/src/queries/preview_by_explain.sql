-- Decisions of a batch, without side effects, from the explanations of an extension that has no ext_preview.
with asked as (
    select a.id, a.context, a.n
    from rows from (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.jsonb[]))
         with ordinality as a(id, context, n)
),
said as (
    select a.n, x.stage, x.candidate, x.verdict, x.detail
    from asked a
    cross join lateral @extschema@.ext_explain(a.id, a.context) x
)
select a.n,
       coalesce(d.verdict = 'allowed', false),
       coalesce(pg_catalog.split_part(d.detail, ' ', 1), 'extension_not_found'),
       null::pg_catalog.int4,
       e.type::pg_catalog.text,
       v.candidate,
       i.candidate,
       coalesce(n.subject, r.subject, e.subject)::pg_catalog.text,
       coalesce(r.timeout_ms, e.timeout_ms),
       coalesce(r.retry, e.retry),
       coalesce(r.config, e.config),
       0::pg_catalog.int8
from asked a
left join said d on d.n = a.n and d.stage = 'decision'
left join said v on v.n = a.n and v.stage = 'version' and v.verdict = 'chosen'
left join said i on i.n = a.n and i.stage = 'instance' and i.verdict = 'chosen'
left join @extschema@.extensions e on e.id = a.id
left join @extschema@.extension_versions r on r.id = a.id and r.version = v.candidate
left join @extschema@.extension_instances n on n.extension_id = a.id and n.instance_id = i.candidate
