//! *Does a real program notice that its functions are hooked and unhooked while it runs?* Its output must be what it is without.
#![allow(missing_docs)]

mod programs_built;

use programs_built::build;
use std::path::Path;
use std::process::Command;

/// Programs of the system and what they do, in a shell: with threads, with processes, with much memory.
const ROWS: [&str; 7] = [
    "seq 3000000 | xz -1 -T2 --block-size=1MiB -c | sha256sum",
    "seq 400000 | sort --parallel=4 -S 1M -R --random-source=/bin/ls | sha256sum",
    "python3 -c 'import threading, hashlib
r = [None] * 4
def f(i): r[i] = hashlib.sha256(str([j * i for j in range(200000)]).encode()).hexdigest()
t = [threading.Thread(target=f, args=(i,)) for i in range(4)]
[x.start() for x in t]; [x.join() for x in t]; print(r)'",
    // Threads that do not end before the program does.
    "for i in 1 2 3 4 5 6; do python3 -c 'import threading, time
def f():
    while True: str(list(range(50)))
for i in range(4): threading.Thread(target=f, daemon=True).start()
time.sleep(0.02); print(\"end\")'; done",
    "perl -e 'my %h; $h{$_ % 5003} .= $_ for 1 .. 600000; print length(join \",\", sort values %h)'",
    "for i in 1 2 3 4; do gcc -O2 -S -o - -x c - <<< 'int f(int a) { return a * 5; }'; done",
    "gdb -nx -batch -ex 'print 6 * 7' -ex 'info line main' /bin/true 2>&1",
];

#[test]
fn real_programs_do_not_notice() {
    let library = build("visitor.c", "gcc", &["-shared", "-fPIC"]);
    let visits = Path::new(env!("CARGO_TARGET_TMPDIR")).join("visits");
    let _ = std::fs::remove_file(&visits);
    for row in ROWS {
        let run = |preload: bool| {
            let mut command = Command::new("bash");
            command.arg("-c");
            if preload {
                // Of the programs in the row, not of the shell.
                command.arg(format!("export LD_PRELOAD={}; {row}", library.display()));
            } else {
                command.arg(row);
            }
            let ran = command.env("VISITS", &visits).output().expect("a shell");
            let said = String::from_utf8_lossy(&ran.stdout).into_owned();
            (
                said,
                String::from_utf8_lossy(&ran.stderr).into_owned(),
                ran.status.code(),
            )
        };
        assert_eq!(run(true), run(false), "{row}");
    }
    let visits = std::fs::read_to_string(&visits).expect("visits were counted");
    let sums = visits.lines().fold([0_u64; 3], |mut sums, line| {
        for (sum, number) in sums.iter_mut().zip(line.split(' ')) {
            *sum += number.parse::<u64>().expect("a number");
        }
        sums
    });
    println!(
        "{} processes: {} rounds, {} calls seen, {} refused",
        visits.lines().count(),
        sums[0],
        sums[1],
        sums[2]
    );
    assert!(sums[0] > 50 && sums[1] > 1000, "{sums:?}");
}
