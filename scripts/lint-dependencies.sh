#!/usr/bin/env bash
# Licences, duplicates and origins of the dependencies, by deny.toml. cargo-deny takes minutes to build, so it is used
# where it is installed and not installed for this.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

if ! command -v cargo-deny >/dev/null; then
	say "lint: dependencies NOT checked, cargo-deny is not installed (cargo install cargo-deny --version 0.20.2 --locked)"
	exit 0
fi
cargo deny --all-features --exclude-dev check --hide-inclusion-graph bans licenses sources
