#!/bin/sh
# What does it cost to record a block of gcc's ggc?
#
#   benches/truth/ggc.sh POINTEE RUNS COMMAND…
#   benches/truth/ggc.sh pointee 10 /usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -O2 lvm.i -o /dev/null
#
# CPU seconds of the program itself: plain, recorded with all pools ignored, and recorded, in turn; of each the least. The last difference, over all blocks of pools, is
# what one costs; that to plain holds the program's other allocations, and what begins and ends a record. What Pointee does before and after is the command's, and not counted. Needs python3.
set -e
pointee=$1 runs=$2
shift 2
no_pools=$(dirname "$0")/../overhead/no-pools.toml
report=$(mktemp)
trap 'rm -f "$report"' EXIT
# Once before, for the images.
"$pointee" run --config "$no_pools" --report /dev/null -- "$@" > /dev/null
"$pointee" run --format json --report "$report" -- "$@" > /dev/null
python3 - "$pointee" "$runs" "$report" "$no_pools" "$@" << 'PYTHON'
import json, os, re, subprocess, sys
pointee, runs, report, no_pools, command = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]

CHILD = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print("CPU", used.ru_utime + used.ru_stime)
"""

def seconds(prefix):
    """CPU time of the program, as its parent is told, which runs like itself."""
    said = subprocess.run(prefix + ["python3", "-c", CHILD] + command, stdout=subprocess.PIPE, text=True).stdout
    return float(re.search(r"^CPU ([\d.]+)$", said, re.M)[1])

plain, without, recorded = [], [], []
for _ in range(runs):
    plain.append(seconds([]))
    without.append(seconds([pointee, "run", "--config", no_pools, "--report", os.devnull, "--"]))
    recorded.append(seconds([pointee, "run", "--report", os.devnull, "--"]))
totals = [one["totals"] for one in json.load(open(report))]
blocks = sum(one["pools"]["allocations"] for one in totals)
others = sum(one["allocations"] for one in totals)
print(f"{blocks} blocks of pools, {others} others; CPU {min(plain):.3f} s plain, {min(without):.3f} s without pools, {min(recorded):.3f} s recorded")
if blocks:
    print(f"{(min(recorded) - min(without)) / blocks * 1e9:.0f} ns a block of the pools")
    print(f"{(min(recorded) - min(plain)) / (blocks + others) * 1e9:.0f} ns a block of all")
PYTHON
