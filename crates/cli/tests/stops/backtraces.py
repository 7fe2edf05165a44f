# Run by gdb: writes the backtrace of each call at which the program calls `witness`, for a second opinion on who allocated.
#
#   OUT     one line a call:   number  pc:function:file:line  …   innermost first, `?` where gdb does not know;
#           at the end:        maps  start path  …                where each file is loaded
#   COUNT   calls after which the program is killed
import gdb
import os

DEEPEST = 24
out = open(os.environ["WITNESS_OUT"], "w")
left = int(os.environ["WITNESS_COUNT"])


def frames():
    frame = gdb.newest_frame()
    while frame is not None and frame.is_valid():
        # Inlined functions have no return address.
        if frame.type() == gdb.NORMAL_FRAME:
            yield frame
        frame = frame.older()


def described(frame):
    place = frame.find_sal()
    known = place.symtab is not None
    return "%x:%s:%s:%s" % (
        frame.pc(),
        (frame.name() or "?").replace(" ", ""),
        os.path.basename(place.symtab.filename) if known else "?",
        place.line if known else "?",
    )


class Witness(gdb.Breakpoint):
    def stop(self):
        global left
        number = int(gdb.parse_and_eval("(unsigned long) $rdi"))
        line = [str(number)]
        for depth, frame in enumerate(frames()):
            if depth == DEEPEST:
                break
            line.append(described(frame))
        print(" ".join(line), file=out)
        left -= 1
        return left == 0


gdb.execute("set pagination off")
gdb.execute("set breakpoint pending on")
Witness("witness")
gdb.execute("run")
starts = {}
for line in open("/proc/%d/maps" % gdb.selected_inferior().pid):
    fields = line.split()
    if len(fields) > 5 and fields[5].startswith("/"):
        starts.setdefault(fields[5], fields[0].split("-")[0])
print("maps", *("%s %s" % (start, path) for path, start in starts.items()), file=out)
out.close()
gdb.execute("kill")
