-- A whole call of the PL/pgSQL version, two statements as in call.sql. Tables and functions: ../plpgsql.sql.
\set id random(1, :extensions)
select * from plpgsql.decide(:id, :context) \gset
select plpgsql.report(:id, :version, 'success', 12.3);
