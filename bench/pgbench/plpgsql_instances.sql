-- The same, and the report counts for the instance, too.
\set id random(1, :extensions)
select * from plpgsql.decide(:id, :context) \gset
select plpgsql.report(:id, :version, :instance_id, 'success', 12.3);
