-- Where services may register, and the versions there are. A prefix that is no text is refused by its looks.
select e.id::pg_catalog.text,
    case when pg_catalog.jsonb_typeof(e.metadata -> 'discover_subject_prefix') = 'string'
        then e.metadata ->> 'discover_subject_prefix'
        else '' end,
    array(
        select v.version::pg_catalog.text from @extschema@.extension_versions v where v.id = e.id
        union
        select e.version::pg_catalog.text
    )
from @extschema@.extensions e
where pg_catalog.jsonb_exists(e.metadata, 'discover_subject_prefix')
