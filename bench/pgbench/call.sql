-- A whole call: a decision, all columns, and its report; two statements, each a transaction of its own.
\set id random(1, :extensions)
select * from ext_select(:id, :context) \gset
select ext_report(:ticket::bigint, 'success', 12.3);
