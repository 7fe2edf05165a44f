#!/bin/sh
# How many calls of a pool's functions are there, and how many of their blocks are recorded?
#
#   benches/truth/pools.sh POINTEE FILE 'FUNCTION…' COMMAND…
#   benches/truth/pools.sh pointee /usr/lib/x86_64-linux-gnu/libapr-1.so.0 'apr_palloc apr_pmemdup' svn log -q URL
#
# The calls are counted by the kernel (uprobes at the functions' entries, by address: by name perf takes linkage stubs too), in a run without Pointee.
# Calls that one of the functions makes of another are counted there and not here: the outermost one records. Blocks of no bytes, and those that
# do not start at a multiple of 8, are not recorded. Needs root, perf, nm, python3; FILE must not be position-dependent.
set -e
pointee=$1 file=$(readlink -f "$2") functions=$3
shift 3
folder=$(mktemp -d)
forget() { perf probe -q -d 'pools:*' 2> /dev/null || true; }
trap 'forget; rm -rf "$folder"' EXIT
forget
events=
for function in $functions; do
    address=$( (nm -D --defined-only "$file"; nm "$file" 2> /dev/null) |
        awk -v name="$function" '{ sub(/@.*/, "", $3) } $3 == name { print $1; exit }')
    [ -n "$address" ] || { echo "$function is not in $file" >&2; exit 1; }
    perf probe -q -x "$file" -a "pools:$function=0x$address"
    events="$events -e pools:$function"
done
# shellcheck disable=SC2086 # One word an event.
perf stat -x, -o "$folder/calls" $events "$@" > /dev/null
"$pointee" run --format json --report "$folder/report" -- "$@" > /dev/null
echo 'calls:'
awk -F, '/pools:/ { sub(/pools:/, "", $3); print "  " $1, $3 }' "$folder/calls"
echo 'recorded:'
python3 - "$folder/report" << 'PYTHON'
import json, sys
for report in json.load(open(sys.argv[1])):
    print(" ", report["totals"]["pools"]["allocations"], "blocks of pools in all")
PYTHON
