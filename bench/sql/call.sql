-- One call here: a decision and a report.
\set e random(:low, :high)
select ticket from ext_select(:e, :context) \gset
select ext_report(:ticket::bigint, 'success', 12);
