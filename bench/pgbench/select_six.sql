-- A decision, with the columns that a caller needs who knows the extension.
\set id random(1, :extensions)
select allowed, reason, subject, timeout_ms, retry, ticket from ext_select(:id, :context);
