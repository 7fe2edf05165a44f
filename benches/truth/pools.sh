#!/bin/sh
# How many calls of a pool's functions are there, and how many of their blocks are recorded?
#
#   benches/truth/pools.sh POINTEE FILE 'FUNCTION…' COMMAND…
#   benches/truth/pools.sh pointee /usr/lib/x86_64-linux-gnu/libapr-1.so.0 'apr_palloc apr_pmemdup' svn log -q URL
#
# The calls are counted by the kernel (uprobes at the functions' entries and returns, by offset in the file), in a run without Pointee.
# Calls that one of the functions makes of another, or of itself, are told apart: the outermost one records. Blocks of no bytes, and those that
# do not start at a multiple of 8, are not recorded. Both runs have the same environment, which some programs copy. Needs root, perf, tracefs, nm,
# readelf, python3.
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
    echo "r:pools/${function}_returned $file:$(offset "$address") block=%ax:x64" >> $uprobes
    events="$events -e pools:$function -e pools:${function}_returned"
done
# shellcheck disable=SC2086 # One word an event.
perf record -q -o "$folder/calls" $events "$@" > /dev/null
"$pointee" run --format json --report "$folder/report" -- "$@" > /dev/null
echo 'calls:'
perf script -i "$folder/calls" -F tid,event,trace | python3 -c '
import collections, re, sys
all_, outermost, other = collections.Counter(), collections.Counter(), collections.Counter()
inside = collections.defaultdict(list)
for line in sys.stdin:
    found = re.match(r"\s*(\d+) +pools:(\w+):", line)
    if not found:
        continue
    thread, event = found.groups()
    if not event.endswith("_returned"):
        all_[event] += 1
        inside[thread].append(event)
        continue
    # What was left by a jump returns with the one outside.
    while inside[thread] and inside[thread].pop() + "_returned" != event:
        pass
    block = re.search(r"block=0x([0-9a-f]+)", line)
    if not inside[thread] and block:
        outermost[event[:-9]] += 1
        other["null" if int(block[1], 16) == 0 else "off 8" if int(block[1], 16) % 8 else ""] += 1
for function, count in all_.most_common():
    print(" ", count, function, "of them outermost", outermost[function])
print(" ", sum(outermost.values()), "outermost;", other["off 8"], "returned what is no multiple of 8,", other["null"], "nothing")
'
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
