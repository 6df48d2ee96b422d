-- Decisions. Functions of C: they read the registry as last committed, plus what this transaction has changed, whatever its
-- isolation level; therefore VOLATILE. They write shared memory only and so work in read-only transactions and on standbys.

create function @extschema@.ext_select(
    extension_id text,
    context jsonb default '{}',
    avoid text[] default '{}'
) returns @extschema@.ext_decision
language c volatile parallel safe
as 'MODULE_PATHNAME', 'ext_select';

comment on function @extschema@.ext_select(text, jsonb, text[]) is
    'Decides where one call goes: version by context, instance by balancing, leaving out the instances in avoid; a refusal is a row, too.';

create function @extschema@.ext_select_many(
    extension_ids text[],
    contexts jsonb[],
    avoid jsonb default null
) returns setof @extschema@.ext_decision_item
language c volatile parallel safe rows 64
as 'MODULE_PATHNAME', 'ext_select_many';

comment on function @extschema@.ext_select_many(text[], jsonb[], jsonb) is
    'Decides for many calls at once, one row each with its ordinality; avoid is an array with one list of instances per call.';

create function @extschema@.ext_explain(
    extension_id text,
    context jsonb default '{}'
) returns table (step integer, stage text, candidate text, verdict text, detail text)
language c volatile parallel safe rows 10
as 'MODULE_PATHNAME', 'ext_explain';

comment on function @extschema@.ext_explain(text, jsonb) is
    'Says why a call would go where it goes: every version and instance, and what speaks for or against it. Changes nothing.';

create function @extschema@.ext_preview(
    extension_ids text[],
    contexts jsonb[]
) returns setof @extschema@.ext_decision_item
language c volatile parallel safe rows 64
as 'MODULE_PATHNAME', 'ext_preview';

comment on function @extschema@.ext_preview(text[], jsonb[]) is
    'The decisions that these calls would get, one after the other, from the registry as this transaction has it; changes nothing: no turn, no probe, no count, ticket 0.';

create function @extschema@._ext_epoch(id text) returns bigint
language c volatile strict parallel safe
as 'MODULE_PATHNAME', '_ext_epoch';

comment on function @extschema@._ext_epoch(text) is
    'Fingerprint of an extension''s configuration, NULL if it is not registered.';
