-- Events are published thus far.
update @extschema@.extension_publications
set event_id = $2, transaction_id = $3::pg_catalog.text::pg_catalog.xid8, saved_at = pg_catalog.now()
where subject = $1::pg_catalog.text
