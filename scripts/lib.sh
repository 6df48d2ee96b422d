# Sourced by the other scripts: where things are, and how to speak.
# shellcheck shell=bash
# shellcheck disable=SC2034  # variables are used by the scripts that source this file

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The default of cargo, unless the caller has chosen another.
target=${CARGO_TARGET_DIR:-$root/target}
tools=$root/target/tools

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# The pg_config to build for: $PG_CONFIG, else the first of the usual places that has a server and its headers.
# A pg_config that belongs to the client library only (Debian's libpq-dev) does not count.
find_pg_config() {
	local candidate
	if [[ -n ${PG_CONFIG:-} ]]; then
		command -v "$PG_CONFIG" || die "PG_CONFIG names '$PG_CONFIG', which is not there"
		return
	fi
	for candidate in "$(command -v pg_config || true)" /usr/lib/postgresql/{15,18,17,16,14,13}/bin/pg_config; do
		if [[ -x $candidate ]] && has_server "$candidate"; then
			printf '%s\n' "$candidate"
			return
		fi
	done
	return 1
}

# Does this pg_config belong to a server that can be built for and run?
has_server() {
	[[ -f $("$1" --includedir-server)/postgres.h && -x $("$1" --bindir)/initdb ]]
}

# 15 of "PostgreSQL 15.20 (Debian ...)", also of "PostgreSQL 18beta1".
pg_major() {
	local version
	version=$("$1" --version)
	[[ $version =~ ([0-9]+) ]] && printf '%s\n' "${BASH_REMATCH[1]}"
}

# Whom Postgres runs as where the caller is root, which it does not run as; nothing otherwise.
server_user() {
	local user
	((EUID == 0)) || return 0
	for user in postgres nobody; do
		if id -u "$user" >/dev/null 2>&1; then
			printf '%s\n' "$user"
			return
		fi
	done
	die "root needs a user 'postgres' or 'nobody' to run Postgres as"
}
