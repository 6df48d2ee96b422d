-- Whether the present role may use a function or read a table of a schema.
select coalesce(
    (select pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'execute'))
     from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
     where n.nspname = $1::pg_catalog.text and p.proname = $2::pg_catalog.text),
    (select pg_catalog.has_table_privilege(c.oid, 'select')
     from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where n.nspname = $1::pg_catalog.text and c.relname = $2::pg_catalog.text))
