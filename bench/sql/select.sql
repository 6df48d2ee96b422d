\set e random(:low, :high)
select * from ext_select(:e, :context);
