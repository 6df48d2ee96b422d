#!/usr/bin/env bash
# pgspot over the installed install script: search_path of every function, objects that others could create beforehand.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

pg_config=$("$root/scripts/pg-config")
version=$(sed -nE 's/^version *= *"(.*)"$/\1/p' "$root/Cargo.toml" | head -n 1)
script=$("$pg_config" --sharedir)/extension/ext_registry--$version.sql
[[ -f $script ]] || die "$script is missing; run 'make install' first"
venv=$("$root/scripts/venv" pgspot)
# A procedure that commits cannot have a SET clause; the names in this one are written out.
"$venv/bin/pgspot" --proc-without-search-path \
    'extschema.ext_invoke_wait(id text,payload jsonb,context jsonb,INOUT result jsonb)' "$script"
