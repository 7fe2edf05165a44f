#!/bin/sh
# How many allocation sites does a file have by functions of other files, and how many of these have a type?
#
#   benches/truth/linked.sh POINTEE FILE…
#   benches/truth/linked.sh pointee DIR/binutils-shared/installed/bin/objdump DIR/ffmpeg-5.1.9/installed/lib/libavformat.so
#
# Alone is what is known of a file by itself: its functions of other files are ignored by configuration.
set -e
pointee=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
count() {
    python3 -c '
import json, sys
rows = json.load(sys.stdin)
own = [row for row in rows if not row["wrapper"]]
print(len(rows), "sites,", len(rows) - len(own), "in wrappers,", sum(row["type"] is not None for row in own), "typed")
'
}
for file in "$@"; do
    echo "$file"
    "$pointee" explain --all --format json "$file" | python3 -c '
import json, sys
for row in json.load(sys.stdin)["functions"]:
    if row["by"] == "learned":
        print("[[ignore]]\nname = \"%s\"" % row["function"])
' > "$folder/alone.toml"
    echo "  alone:    $("$pointee" --config "$folder/alone.toml" sites --all --format json "$file" | count)"
    echo "  together: $("$pointee" sites --all --format json "$file" | count)"
done
