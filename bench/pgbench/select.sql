-- A decision, all columns.
\set id random(1, :extensions)
select * from ext_select(:id, :context);
