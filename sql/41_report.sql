-- Reports: how calls ended. Functions of C; they count in shared memory, outside of the transaction: a caller that rolls
-- back has still called.

create function @extschema@.ext_report(
    ticket bigint,
    outcome text,
    latency_ms double precision,
    retries integer default 0
) returns void
language c volatile parallel safe
as 'MODULE_PATHNAME', 'ext_report_ticket';

comment on function @extschema@.ext_report(bigint, text, double precision, integer) is
    'Reports how one attempt ended, by the ticket of its decision; latency in ms. A second report of a ticket changes nothing.';

create function @extschema@.ext_report(
    extension_id text,
    outcome text,
    latency_ms double precision,
    version text default null,
    instance_id text default null,
    retries integer default 0
) returns void
language c volatile parallel safe
as 'MODULE_PATHNAME', 'ext_report_target';

comment on function @extschema@.ext_report(text, text, double precision, text, text, integer) is
    'Reports how one attempt ended, by name; latency in ms. Without version: the one that an empty context gets.';

create function @extschema@.ext_report_many(
    tickets bigint[],
    outcomes text[],
    latencies_ms double precision[],
    retries integer[],
    reporter uuid default null,
    seq bigint default null,
    out applied integer,
    out flushed_seq bigint
) returns record
language c volatile parallel safe
as 'MODULE_PATHNAME', 'ext_report_many';

comment on function
    @extschema@.ext_report_many(bigint[], text[], double precision[], integer[], uuid, bigint) is
    'Reports many attempts at once, all or none; a seq that this reporter has already had applied is a no-op. flushed_seq is on disk.';
