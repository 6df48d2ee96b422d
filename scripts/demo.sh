#!/usr/bin/env bash
# Everything at once, on free ports: a private Postgres, nats-server, the reference services and a bridge; then a story told
# with real calls, each shown fact checked. Ends with 0 only if all of it was so. With --stay everything keeps running
# until Ctrl-C. Nothing is left behind either way.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stay=
[[ ${1:-} == --stay ]] && stay=yes

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
	bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
	bold='' dim='' red='' green='' plain=''
fi

bin=$("$("$root/scripts/pg-config")" --bindir)
python=$("$root/scripts/venv" nats-py)/bin/python
bridge_program=$target/release/ext-bridge
services_program=$target/release/examples/reference_services
for program in "$bridge_program" "$services_program"; do
	[[ -x $program ]] || die "$program is missing; run 'make install bridge services' first"
done

# --- servers -----------------------------------------------------------------------------------------------------------

user=$(server_user)
as_user() {
	if [[ -n $user ]]; then (cd / && setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups -- "$@"); else "$@"; fi
}

mkdir -p "$target"
work=$(mktemp -d "$target/demo-XXXXXX")
chmod 755 "$work"
if ! as_user test -x "$work"; then
	rmdir "$work"
	work=$(mktemp -d "${TMPDIR:-/tmp}/ext-registry-demo-XXXXXX")
	chmod 755 "$work"
fi
pids=()

finish() {
	local status=$? pid
	trap - EXIT INT TERM
	# The bridge first: it hands in what it still holds.
	for pid in "${pids[@]}"; do
		kill -TERM "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	[[ ! -f $work/pg/postmaster.pid ]] || as_user "$bin/pg_ctl" -D "$work/pg" -m fast -s stop || true
	rm -rf "$work"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# await WHAT LOG COMMAND...: until the command succeeds, at most 20 s.
await() {
	local what=$1 log=$2 tries
	shift 2
	for ((tries = 0; tries < 400; tries++)); do
		"$@" >/dev/null 2>&1 && return
		sleep 0.05
	done
	tail -n 20 "$log" >&2
	die "$what does not come up"
}

start_postgres() {
	mkdir "$work/pg"
	[[ -z $user ]] || chown "$user" "$work" "$work/pg"
	as_user "$bin/initdb" -D "$work/pg" -U postgres --auth=trust --encoding=UTF8 --locale=C --no-sync >"$work/initdb.log"
	cat >>"$work/pg/postgresql.conf" <<-CONF
		listen_addresses = '127.0.0.1'
		port = $PGPORT
		unix_socket_directories = ''
		shared_preload_libraries = 'ext_registry'
		fsync = off
	CONF
	as_user "$bin/pg_ctl" -D "$work/pg" -l "$work/pg/log" -s -w start || { tail -n 20 "$work/pg/log" >&2; die "Postgres does not start"; }
}

start_nats() {
	"$tools/bin/nats-server" --addr 127.0.0.1 --port -1 --ports_file_dir "$work" >"$work/nats.log" 2>&1 &
	pids=($! "${pids[@]}")
	await nats-server "$work/nats.log" compgen -G "$work/nats-server_*.ports"
	NATS_URL=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["nats"][0])' "$work"/nats-server_*.ports)
	export NATS_URL
}

start_services() {
	"$services_program" --instance instance-1 --instance instance-2 >"$work/services.log" 2>&1 &
	pids=($! "${pids[@]}")
	await "the reference services" "$work/services.log" grep -qx ready "$work/services.log"
}

start_bridge() {
	"$bridge_program" serve --http-addr "127.0.0.1:$http_port" --grpc-addr "127.0.0.1:$(free_port)" >"$work/bridge.log" 2>&1 &
	pids=($! "${pids[@]}")
	await ext-bridge "$work/bridge.log" ready_to_serve
}
ready_to_serve() {
	python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1])' "http://127.0.0.1:$http_port/readyz"
}

# --- telling -----------------------------------------------------------------------------------------------------------

facts=0
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
# fact WHAT GOT WANTED: says it, and ends the demo where it is not so.
fact() {
	if [[ $2 != "$3" ]]; then
		printf '  %s✗ %s: %s, not %s%s\n' "$red" "$1" "$2" "$3" "$plain"
		tail -n 5 "$work/bridge.log" | sed 's/^/    /' >&2
		exit 1
	fi
	facts=$((facts + 1))
	printf '  %s✓%s %s\n' "$green" "$plain" "$1"
}
# Shows a statement and what psql answers.
sql() {
	printf '%s' "$dim"
	printf '%s\n' "$1" | sed -E 's/^/  =# /'
	printf '%s' "$plain"
	"$bin/psql" -X -q -v ON_ERROR_STOP=1 -P footer=off -P border=1 -c "$1" | sed -E 's/^/  /; /^ *$/d'
}
# The value of a query, for the facts.
value() { "$bin/psql" -X -q -A -t -v ON_ERROR_STOP=1 -c "$1"; }
# value_becomes SQL WANTED: until it is so, at most 10 s; the last value. What a bridge reports arrives behind its replies.
value_becomes() {
	local got tries
	for ((tries = 0; tries < 200; tries++)); do
		got=$(value "$1")
		[[ $got == "$2" ]] && break
		sleep 0.05
	done
	printf '%s\n' "$got"
}
# Shows a command of the bridge and its answer, which is also left in $answer. It asks the running bridge over NATS.
call() {
	printf '  %s$ ext-bridge' "$dim"
	printf ' %s' "${@@Q}" | sed -E "s/'([A-Za-z_-]+)'/\\1/g"
	printf '%s\n' "$plain"
	answer=$("$bridge_program" "$@" 2>>"$work/calls.log") || true
	python3 -c 'import json, sys; print(json.dumps(json.loads(sys.argv[1])))' "$answer" | fold -s -w 116 | sed 's/^/  /'
}
# field PATH: a part of $answer, such as message.payload.
field() {
	python3 -c '
import json, sys
value = json.loads(sys.argv[1])
for key in sys.argv[2].split("."):
    value = value[int(key)] if isinstance(value, list) else value[key]
print(value)' "$answer" "$1"
}
client() { "$python" "$root/scripts/demo_client.py" "$NATS_URL" "$@"; }

# --- the story -----------------------------------------------------------------------------------------------------------

export PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=beamline PGPORT http_port
unset PGOPTIONS PGSERVICE PGPASSWORD
PGPORT=$(free_port)
http_port=$(free_port)
export EXTENSION_REGISTRY_SOURCE=database EXTENSION_REGISTRY_DB_HOST=127.0.0.1 EXTENSION_REGISTRY_DB_PORT=$PGPORT
export EXTENSION_REGISTRY_DB_NAME=beamline EXTENSION_REGISTRY_DB_USER=beamline

start_postgres
PGDATABASE=postgres value 'create database beamline'
# The bridge gets a role that may do what a bridge does, and no more.
value "create extension ext_registry; create role beamline login; select ext_grant('beamline', 'bridge')" >"$work/setup.log"
EXTENSION_REGISTRY_DB_USER=postgres "$bridge_program" fixtures load --fixtures "$root/fixtures" >>"$work/setup.log" 2>&1 ||
	{ tail -n 5 "$work/setup.log" >&2; die "the fixtures could not be loaded"; }
# The fixtures' timeouts suit services on machines of their own; here all share one.
value 'update extensions set timeout_ms = 3000 where timeout_ms < 3000'
start_nats
start_services
start_bridge
echo "Postgres on 127.0.0.1:$PGPORT, NATS on ${NATS_URL#nats://}, the bridge's metrics on http://127.0.0.1:$http_port/metrics"

step '1. The registry is tables; four services are registered.'
sql 'select id, type, version, subject, timeout_ms, retry from extensions order by type'
fact 'four extensions, one of each type' "$(value 'select count(distinct type) from extensions')" 4

step '2. A message goes through the pipeline of a policy: pre, validator, provider, post.'
call route full --tenant default --message '{"payload": "  Where IS my Order?  "}'
fact 'normalized, checked, answered, masked' "$(field message.payload)" 'echo: where is my order?'
call route full --tenant default --message '{"payload": "my card is 4111 1111 1111 1111"}'
fact 'a card number is blocked by the validator' "$(field error.code)" validator_blocked

step '3. Version 2 is rolled out to one tenant, by SQL. The next call sees it.'
sql "insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules) values
     ('normalize_text', 'v2', 'beamline.ext.pre.normalize_text.v2', 3000, 0, '{\"tenant_id\": [\"premium\"]}')"
call invoke normalize_text --tenant premium --payload '{"text": "Two   Blanks"}'
fact 'premium is served by v2' "$(field metadata.normalized_by)" v2
call invoke normalize_text --tenant basic --payload '{"text": "Two   Blanks"}'
fact 'basic is served by v1' "$(field metadata.normalized_by)" v1

step '4. Two instances of v1 share its calls by weight, exactly.'
sql "insert into extension_instances (extension_id, instance_id, version, subject, weight) values
     ('normalize_text', 'instance-1', 'v1', 'beamline.ext.pre.normalize_text.v1.instance-1', 100),
     ('normalize_text', 'instance-2', 'v1', 'beamline.ext.pre.normalize_text.v1.instance-2', 50)"
# One is slower, to have something to look at in step 7.
client control normalize_text.v1.instance-2 slow 20
fact '300 calls, 8 at a time, all answered' "$(client calls normalize_text 300)" 'answered 300'
shares="select string_agg(success_count::text, ' ' order by instance_id) from extension_instance_health"
got=$(value_becomes "$shares" '200 100')
sql 'select instance_id, weight, success_count, round(p50_latency_ms::numeric, 1) as p50_ms
     from extension_instance_health order by instance_id'
fact '200 and 100 calls: 67 % and 33 %' "$got" '200 100'

step '5. pii_guard starts to fail. Its breaker opens; calls are refused at once instead of waiting.'
value "update extension_health set circuit_breaker_timeout_seconds = 2 where extension_id = 'pii_guard'"
client control pii_guard error
client calls pii_guard 20 >"$work/ends"
got=$(value_becomes "select circuit_breaker_state from extension_health where extension_id = 'pii_guard'" open)
echo "  20 calls: $(paste -sd, "$work/ends" | sed 's/,/, /')"
fact 'some fail, and the breaker is open' "$got" open
call invoke pii_guard --payload '{"text": "hello"}'
fact 'the next call is refused' "$(field error.code)" extension_unavailable
sql "select * from ext_explain('pii_guard')"

step '6. It is repaired. After its open time three probes are let through; they succeed, and it closes.'
client control pii_guard ok
for ((tries = 0; tries < 100; tries++)); do
	client calls pii_guard 1 >"$work/ends"
	[[ $(value "select circuit_breaker_state from extension_health where extension_id = 'pii_guard'") == closed ]] && break
	sleep 0.1
done
path="select string_agg(to_state, ' > ' order by id) from extension_breaker_events where extension_id = 'pii_guard'"
got=$(value_becomes "$path" 'open > half_open > closed')
sql "select at::time(0), version, from_state, to_state, reason, failures, requests from extension_breaker_events order by id"
fact 'open, half open, closed' "$got" 'open > half_open > closed'

step '7. Health of all four, and the latencies of normalize_text: most calls are quick, every third waits for instance-2.'
sql "select extension_id, circuit_breaker_state as breaker, success_count as ok, failure_count as failed,
       round(success_rate::numeric, 3) as rate, round(p50_latency_ms::numeric, 1) as p50_ms,
       round(p95_latency_ms::numeric, 1) as p95_ms, round(p99_latency_ms::numeric, 1) as p99_ms
     from extension_health order by extension_id"
fact 'every call is counted, none twice' \
	"$(value "select success_count + failure_count from extension_health where extension_id = 'normalize_text'")" 304
samples=$(value_becomes "select sum(success) from extension_metrics where extension_id = 'normalize_text' and instance_id = ''" 304)
fact 'the minute metrics hold them too, each with its histogram' "$samples" 304
sql "select * from ext_latency_histogram('normalize_text')"

printf '\n%s%d facts shown and checked in %d s.%s\n' "$green" "$facts" "$SECONDS" "$plain"
look="psql -h 127.0.0.1 -p $PGPORT -U postgres beamline"
if [[ -z $stay ]]; then
	echo "To look further: 'make run' tells the same and stays; it ends with the psql command to type."
	exit 0
fi
echo "To look further:  $look"
echo "                  \\d, \\df+ ext_*, select * from extension_health \\watch 2"
echo "Ctrl-C stops and removes everything."
# From here on that is the way to end it, not a failure.
trap 'exit 0' INT TERM
sleep infinity &
pids=($! "${pids[@]}")
wait $!
