# What a debugger shows for each instruction that was written for a hook: its line, and whether what the line says is so. The files that gdb was told
# of are copied to the folder $DUMPS.
import os
import re
import gdb

gdb.execute("set pagination off")
gdb.execute("set debuginfod enabled off")
gdb.execute("set trust-readonly-sections on")  # a displaced instruction is compared with the one in the program's file
gdb.execute("break innermost")
gdb.execute("ignore 1 2")
gdb.execute("run", to_string=True)
gdb.execute("call ((int (*)(void))pointee_write_listings)()", to_string=True)
inferior = gdb.selected_inferior()


def word(at):
    return int.from_bytes(inferior.read_memory(at, 8).tobytes(), "little")


def instruction(at):
    disassembled = gdb.selected_frame().architecture().disassemble(at)[0]
    # Distances differ where the instruction lies; what is at the distance does not.
    return disassembled["length"], re.sub(r"\s*#.*|0x[0-9a-f]+\(%rip\)", "", disassembled["asm"]).split(" <")[0]


# The text of each code that was told of, as long as its lines go.
wrong, kinds, rows, folders = [], {}, 0, set()
entry = word(int(gdb.parse_and_eval("(long)&__jit_debug_descriptor")) + 16)
number = 0
while entry:
    file, size = word(entry + 16), word(entry + 24)
    image = inferior.read_memory(file, size).tobytes()
    with open(os.path.join(os.environ["DUMPS"], "%d.elf" % number), "wb") as copy:
        copy.write(image)
    number += 1
    text = 64 + 64  # the header of .text, with its address and length
    pc = int.from_bytes(image[text + 16 : text + 24], "little")
    end = min(pc + int.from_bytes(image[text + 32 : text + 40], "little"), pc + 2048)
    entry = word(entry)
    last = None
    while pc < end:
        found = gdb.find_pc_line(pc)
        if found.symtab is None or found.last is None or found.last < pc:
            break
        path = found.symtab.fullname()
        folders.add(os.path.dirname(path))
        with open(path) as listing:
            says = listing.read().split("\n")[found.line - 1]
        first = (path, found.line) != last
        last = (path, found.line)
        kind = says.split(":")[0]
        rows += first
        if first:
            kinds[kind] = kinds.get(kind, 0) + 1
        if first and kind == "displaced":
            place = re.match(r"displaced: (\w+)(?:\+(0x[0-9a-f]+))? \(.+\+0x[0-9a-f]+\),((?: [0-9a-f]{2})+)$", says)
            if not place:
                wrong.append((hex(pc), says))
                break
            original = int(gdb.parse_and_eval("(long)&" + place.group(1))) + int(place.group(2) or "0", 16)
            length, there = instruction(original)
            told = bytes.fromhex(place.group(3).replace(" ", ""))
            # A call is copied as a push and a jump.
            same = there == instruction(pc)[1] or there.startswith("call") and instruction(pc)[1].startswith("push")
            if not same or len(told) != length:
                wrong.append((hex(pc), says, there, instruction(pc)[1]))
        if kind == "no code":
            pc = max(found.last + 1, pc + 1)
        else:
            pc += instruction(pc)[0]
for row in wrong:
    print("wrong", row)
print("files", number, "rows", rows, "wrong", len(wrong), " ".join("%s=%d" % (kind.split(" ")[0], count) for kind, count in sorted(kinds.items())))
gdb.execute("kill")
for folder in folders:
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    os.rmdir(folder)
