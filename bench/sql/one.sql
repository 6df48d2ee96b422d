\set e random(:low, :high)
select 1;
