#!/usr/bin/env bash
# Does any of the parsers of untrusted bytes break? Builds all fuzz targets and runs each of them.
#
#   fuzz/run.sh [SECONDS]      seconds for each target, 10 if not said
#
# The first inputs are made from real files: programs of the system, programs compiled here with
# debug info, their images, snapshots and regions. A crash, a hang of a minute or 2 GiB of memory
# fails the run; the input that did it stays in fuzz/artifacts/.
#
#   SANITIZER=address fuzz/run.sh      with AddressSanitizer; the parsers are safe Rust, so the
#                                      default is none, which builds and runs in half the time
#   JOBS=1 fuzz/run.sh                 one target after the other; else as many as processors
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-10}
sanitizer=${SANITIZER:-none}
jobs=${JOBS:-$(nproc)}
# Coverage instrumentation is stable, sanitizers are not: with this a stable compiler takes them too.
if [ "$sanitizer" != none ]; then
    export RUSTC_BOOTSTRAP=1
fi

if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install --quiet --locked cargo-fuzz
fi
cargo fuzz build --sanitizer "$sanitizer" --target-dir target

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Sources of many shapes of types, as different producers write their debug info.
fixtures=../crates/meta/tests/fixtures
compile() {
    local name=$1
    shift
    gcc -o "$scratch/$name" "$@" "$fixtures/layout.c" "$fixtures/second.c"
}
compile dwarf5 -gdwarf-5 -O1
compile dwarf4 -gdwarf-4 -O2 -fdebug-types-section
compile packed -gdwarf-5 -O0 -gz=zlib
export SEEDS_FROM="$scratch/dwarf5:$scratch/dwarf4:$scratch/packed:/usr/bin/true"
# Threads would make the coverage of one input differ from run to run.
export RAYON_NUM_THREADS=1

host=$(rustc -vV | sed -n 's/^host: //p')
export scratch seconds programs="target/$host/release"
run_target() {
    local target=$1 log="$scratch/$1.log"
    mkdir -p "$scratch/corpus/$target" "artifacts/$target"
    if SEEDS_TO="$scratch/corpus/$target" "$programs/$target" "$scratch/corpus/$target" \
        -seed=1 -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="artifacts/$target/" >"$log" 2>&1; then
        local seeds runs memory
        seeds=$(find "$scratch/corpus/$target" -name 'seed-*' | wc -l)
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        memory=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
        # A target that never ran an input has not shown anything.
        if [ "$seeds" -gt 0 ] && [ "${runs:-0}" -gt "$seeds" ]; then
            echo "ok      $target: $runs inputs from $seeds seeds, $memory MiB"
            return 0
        fi
    fi
    echo "FAILED  $target"
    tail -n 60 "$log"
    return 1
}
export -f run_target

cargo fuzz list | xargs -n 1 -P "$jobs" bash -c 'run_target "$0"'
