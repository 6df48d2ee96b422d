#!/usr/bin/env bash
# Runs shellcheck over every shell script of the repository.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

venv=$("$root/scripts/venv" shellcheck)
mapfile -t files < <(git ls-files --cached --others --exclude-standard -- scripts .ci bench tests deploy |
	while read -r file; do head -n 1 "$file" | grep -qE "^#!.*sh\b" && echo "$file"; done; echo scripts/lib.sh)
"$venv/bin/shellcheck" --external-sources --source-path=SCRIPTDIR "${files[@]}"
