-- The report of a call under way. Tickets have been issued beforehand, a run of consecutive ones for each client.
\set n :n + 1
\set ticket :first_ticket + :client_id * :tickets_per_client + :n
select ext_report(:ticket::bigint, 'success', 12.3);
