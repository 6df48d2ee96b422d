-- What a statement costs at least. The draw is here because it is in the scripts this is compared with.
\set id random(1, :extensions)
select 1;
