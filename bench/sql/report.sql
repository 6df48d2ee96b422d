\set e random(:low, :high)
select ext_report(:e, 'success', 12);
