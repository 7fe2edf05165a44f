#!/bin/sh
# How many calls of a pool's functions are there, and how many of their blocks are recorded?
#
#   benches/truth/pools.sh POINTEE FILE 'FUNCTION…' COMMAND…
#   benches/truth/pools.sh pointee /usr/lib/x86_64-linux-gnu/libapr-1.so.0 'apr_palloc apr_pmemdup' svn log -q URL
#
# The calls are counted by the kernel (uprobes at the functions' entries, by offset in the file), in a run without Pointee.
# Calls that one of the functions makes of another are counted there and not here: the outermost one records. Blocks of no bytes, and those that
# do not start at a multiple of 8, are not recorded. Needs root, perf, tracefs, nm, readelf, python3.
set -e
pointee=$1 file=$(readlink -f "$2") functions=$3
shift 3
folder=$(mktemp -d)
uprobes=/sys/kernel/tracing/uprobe_events
[ -e $uprobes ] || mount -t tracefs tracefs /sys/kernel/tracing
forget() {
    grep -o ':pools/[^ ]*' $uprobes | sed 's/^/-/' | while read -r event; do echo "$event" >> $uprobes; done
}
# Where the byte at a link-time address lies in the file.
offset() {
    readelf -lW "$file" | python3 -c '
import sys
address = int(sys.argv[1], 16)
for line in sys.stdin:
    words = line.split()
    if words[:1] == ["LOAD"]:
        offset, start, _, size = (int(word, 16) for word in words[1:5])
        if start <= address < start + size:
            print(hex(address - start + offset))
' "$1"
}
trap 'forget; rm -rf "$folder"' EXIT
forget
events=
for function in $functions; do
    address=$( (nm -D --defined-only "$file"; nm "$file" 2> /dev/null) |
        awk -v name="$function" '{ sub(/@.*/, "", $3) } $3 == name { print $1; exit }')
    [ -n "$address" ] || { echo "$function is not in $file" >&2; exit 1; }
    echo "p:pools/$function $file:$(offset "$address")" >> $uprobes
    events="$events -e pools:$function"
done
# shellcheck disable=SC2086 # One word an event.
perf stat -x, -o "$folder/calls" $events "$@" > /dev/null
"$pointee" run --format json --report "$folder/report" -- "$@" > /dev/null
echo 'calls:'
awk -F, '/pools:/ { sub(/pools:/, "", $3); print "  " $1, $3 }' "$folder/calls"
echo 'recorded:'
python3 - "$folder/report" << 'PYTHON'
import collections, json, sys
for report in json.load(open(sys.argv[1])):
    blocks = collections.Counter()
    for site in report["sites"]:
        if site["allocator"]:
            blocks[site["allocator"]] += site["allocations"]
    print(" ", report["totals"]["pools"]["allocations"], "blocks of pools in all")
    for allocator, count in blocks.most_common():
        print("   ", count, allocator)
PYTHON
