-- Decision and report in one statement.
\set id random(1, :extensions)
select ext_report(ticket, 'success', 12.3) from ext_select(:id, :context);
