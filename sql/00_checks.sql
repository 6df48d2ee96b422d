-- Checks behind the CHECK constraints of the registry.
--
-- Each returns true, or raises check_violation (23514) naming the value, with a HINT on what would be accepted: a bare
-- "violates check constraint" says neither. They read no table, so a dump restores in any order. NULL passes.
--
-- The whole script runs under this path: names are written out, operators are those of pg_catalog.
set local search_path = pg_catalog, pg_temp;

-- The library takes text for UTF-8. In another encoding all letters beyond ASCII would be alike to it: rules would match
-- whom they should not. (SQL_ASCII is what initdb chooses without a locale; there text is what clients make it.)
do $$
begin
    if current_setting('server_encoding') not in ('UTF8', 'SQL_ASCII') then
        raise exception using
            errcode = 'feature_not_supported',
            message = format('ext_registry needs a database with encoding UTF8, not %s', current_setting('server_encoding')),
            hint = 'CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0;';
    end if;
end;
$$;

create function @extschema@._ext_check_id(what text, value text) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_id';

comment on function @extschema@._ext_check_id(text, text) is
    'True if value is an id: 1 to 255 of A-Z a-z 0-9 _ and -; else error 23514.';

create function @extschema@._ext_check_version(what text, value text) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_version';

comment on function @extschema@._ext_check_version(text, text) is
    'True if value is a version name: 1 to 32 of A-Z a-z 0-9 . _ + and -; else error 23514.';

create function @extschema@._ext_check_subject(what text, value text) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_subject';

comment on function @extschema@._ext_check_subject(text, text) is
    'True if value is a NATS subject one may publish to (no wildcard, space, empty token, leading $ or _INBOX); else error 23514.';

create function @extschema@._ext_check_int(what text, value bigint, low bigint, high bigint) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_int';

comment on function @extschema@._ext_check_int(text, bigint, bigint, bigint) is
    'True if low <= value <= high; else error 23514.';

create function @extschema@._ext_check_number(
    what text,
    value double precision,
    low double precision,
    high double precision
) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_number';

comment on function @extschema@._ext_check_number(text, double precision, double precision, double precision) is
    'True if low <= value <= high (NaN is not); else error 23514.';

create function @extschema@._ext_check_one_of(what text, value text, allowed text[]) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_one_of';

comment on function @extschema@._ext_check_one_of(text, text, text[]) is
    'True if value is one of allowed; else error 23514.';

create function @extschema@._ext_check_object(what text, value jsonb) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_object';

comment on function @extschema@._ext_check_object(text, jsonb) is
    'True if value is a JSON object; else error 23514.';

create function @extschema@._ext_check_rules(rules jsonb) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_rules';

comment on function @extschema@._ext_check_rules(jsonb) is
    'True if rules is a valid routing_rules object; else error 23514 naming the key.';

create function @extschema@._ext_check_policy(document jsonb) returns boolean
language c immutable strict parallel safe
as 'MODULE_PATHNAME', '_ext_check_policy';

comment on function @extschema@._ext_check_policy(jsonb) is
    'True if document is a valid policy (pre, validators, providers, post, ...); else error 23514 naming the key.';
