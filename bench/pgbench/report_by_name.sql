-- A report without a ticket.
\set id random(1, :extensions)
select ext_report(:id, 'success', 12.3);
