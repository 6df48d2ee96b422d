#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/, one after the other: FUZZ_SECONDS (60) each, all of them or those that are named.
#
#   make fuzz                        FUZZ_SECONDS=600 scripts/fuzz.sh rules hdr
#
# It begins with the committed corpus, fuzz/corpus/TARGET; what it finds on its way is kept under $target/fuzz/corpus, for
# the next run. Input that breaks a promise ends up in fuzz/artifacts/TARGET, and the run ends with an error at its end.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cargo_fuzz_version=0.13.2
seconds=${FUZZ_SECONDS:-60}
cd "$root"

# A stable compiler will do: this lets it take the flags of coverage. (Our own code has no `unsafe`, so no sanitizer.)
export RUSTC_BOOTSTRAP=1
build=(--sanitizer none --target-dir "$target/fuzz/build")

if ! cargo fuzz --version >/dev/null 2>&1; then
	say "cargo-fuzz $cargo_fuzz_version (a build of a minute; log: target/tools/cargo-fuzz.log):"
	mkdir -p "$tools"
	cargo install cargo-fuzz --version "$cargo_fuzz_version" --locked >"$tools/cargo-fuzz.log" 2>&1 ||
		{ tail -n 20 "$tools/cargo-fuzz.log" >&2; die "cargo install cargo-fuzz failed"; }
fi

targets=("$@")
((${#targets[@]} > 0)) || mapfile -t targets < <(cargo fuzz list)

cargo fuzz build "${build[@]}"
broken=()
for name in "${targets[@]}"; do
	found=$target/fuzz/corpus/$name
	mkdir -p "$found"
	say "$name, $seconds s:"
	cargo fuzz run "${build[@]}" "$name" "$found" "fuzz/corpus/$name" -- \
		-max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -dict=fuzz/words.dict \
		-print_final_stats=1 -print_new=0 || broken+=("$name")
done
((${#broken[@]} == 0)) || die "promises were broken by: ${broken[*]}"
say "${#targets[@]} targets, no promise broken"
