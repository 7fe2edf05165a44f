# Steps through one call of outer(), instruction by instruction, and sees at each whether a debugger finds main() and outer().
import gdb

gdb.execute("set pagination off")
gdb.execute("set debuginfod enabled off")
gdb.execute("break outer")
gdb.execute("ignore 1 1")  # the first call makes what the later ones find
gdb.execute("run", to_string=True)
gdb.execute("delete")
steps, lost = 0, {}
while gdb.newest_frame().name() != "main" and steps < 20000:
    names = []
    frame = gdb.newest_frame()
    while frame is not None and len(names) < 50:
        names.append(frame.name() or "?")
        frame = frame.older()
    if "main" not in names or "outer" not in names:
        lost.setdefault(gdb.newest_frame().pc(), names)
    gdb.execute("stepi", to_string=True)
    steps += 1
for pc, names in lost.items():
    print("lost at", hex(pc), gdb.execute("x/i %d" % pc, to_string=True).strip(), names)
print("steps", steps, "lost", len(lost))
gdb.execute("kill")
