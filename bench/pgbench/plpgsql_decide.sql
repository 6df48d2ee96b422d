-- A decision of the PL/pgSQL version alone.
\set id random(1, :extensions)
select * from plpgsql.decide(:id, :context);
