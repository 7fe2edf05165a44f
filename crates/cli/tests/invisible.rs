//! *Does a program that is watched do just what it does by itself?* — Debian's own stripped programs, byte for byte.

mod harness;

use harness::pointee;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Debian packages of what is run here.
pub const PACKAGES: &[&str] = &[
    "bash", "git", "perl", "python3", "gcc", "cpp", "sqlite3", "tar", "zstd", "vim", "nodejs",
    "gdb", "gawk", "openssl",
];

/// A folder with inputs that are the same each time.
fn inputs() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let write = |name: &str, text: String| {
        std::fs::write(folder.path().join(name), text).expect("writes");
    };
    let text = |lines: u32| -> String {
        (0..lines)
            .map(|n| {
                format!(
                    "line {n} of the text, {:x}\n",
                    n.wrapping_mul(2_654_435_761)
                )
            })
            .collect()
    };
    write("text", text(20_000));
    let functions: String = (0..1500)
        .map(|n| {
            format!(
                "struct s{n} {{ int a, b; }};\nint f{n}(struct s{n} *s, int x) {{ int y = {n}; \
                 for (int i = 0; i < x; i++) y += s->a * i % 7; return y; }}\n"
            )
        })
        .collect();
    write(
        "big.c",
        format!("{functions}int main(void) {{ return f1(0, 0); }}\n"),
    );
    folder
}

fn run(mut command: Command, folder: &Path) -> Output {
    command
        .current_dir(folder)
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8")
        .env("PERL_HASH_SEED", "0")
        .env("PYTHONHASHSEED", "0")
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

/// Nothing tells the watched run from the plain one.
fn check(folder: &Path, command: &[&str]) {
    let Some(program) = ["/usr/bin", "/bin"]
        .iter()
        .map(|place| format!("{place}/{}", command[0]))
        .find(|path| Path::new(path).exists())
    else {
        eprintln!("SKIPPED: there is no {}", command[0]);
        return;
    };
    let mut plain = Command::new(&program);
    plain.args(&command[1..]);
    let mut watched = pointee();
    watched
        .args(["run", "--report", "report", "--", &program])
        .args(&command[1..]);
    let (plain, watched) = (run(plain, folder), run(watched, folder));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if plain.stdout != watched.stdout {
        assert_eq!(text(&watched.stdout), text(&plain.stdout), "{command:?}");
        panic!("{command:?}: output differs in bytes that are no text");
    }
    assert_eq!(text(&watched.stderr), text(&plain.stderr), "{command:?}");
    assert_eq!(watched.status.code(), plain.status.code(), "{command:?}");
    assert_eq!(
        watched.status.signal(),
        plain.status.signal(),
        "{command:?}"
    );
    let report = std::fs::read_to_string(folder.join("report")).expect("a report");
    assert!(
        report.contains("allocations"),
        "{command:?} was not watched: {report}"
    );
    std::fs::remove_file(folder.join("report")).expect("a report");
}

#[test]
fn shells_and_tools() {
    let folder = inputs();
    let rows: &[&[&str]] = &[
        &["env"],
        &["env", "-i", "A=1", "env"],
        &[
            "bash",
            "-c",
            "for i in 1 2 3; do echo $(echo sub$i | tr a-z A-Z); done; f(){ echo $1; }; f x | cat; \
             sort -r text | head -3; { sleep 0; echo late; } & wait; trap 'echo bye' EXIT; echo ${LD_PRELOAD-unset}; exit 3",
        ],
        &["bash", "-c", "kill -TERM $$"],
        &["bash", "-c", "ulimit -c 0; kill -SEGV $$"],
        &["git", "--version"],
        &[
            "git",
            "-c",
            "user.name=n",
            "-c",
            "user.email=e",
            "diff",
            "--no-index",
            "--stat",
            "--patch",
            "text",
            "big.c",
        ],
        &[
            "sh",
            "-c",
            "tar cf - --mtime=@0 --owner=0 --group=0 text big.c | zstd -3 -T1 | sha256sum",
        ],
        &[
            "gawk",
            "{ n[$2 % 100] += length($0) } END { for (i in n) print i, n[i] | \"sort -n\" }",
            "text",
        ],
        &["openssl", "dgst", "-sha256", "text"],
        &["gdb", "-q", "-batch", "-ex", "print 6 * 7"],
    ];
    for command in rows {
        check(folder.path(), command);
    }
}

#[test]
fn interpreters() {
    let folder = inputs();
    let rows: &[&[&str]] = &[
        &[
            "perl",
            "-e",
            "use POSIX; print join(',', map { $_ * 2 } 1..1000); print `echo hi`; my %h; open F, 'text'; \
             while (<F>) { $h{$_}++ for split } print scalar keys %h; if (!fork) { print qq(child\n); exit 2 } wait; \
             print $? >> 8, qq(\n); exit 4",
        ],
        &[
            "python3",
            "-c",
            "import subprocess, json, re, os, sys, collections, threading\n\
             print(subprocess.check_output(['echo', 'x']))\n\
             print(json.dumps(collections.Counter(re.findall('[0-9a-f]+', open('text').read())).most_common(5)))\n\
             threads = [threading.Thread(target=lambda: sum(range(10000))) for _ in range(4)]\n\
             [t.start() for t in threads]; [t.join() for t in threads]\n\
             sys.stdout.flush()\n\
             pid = os.fork()\n\
             if pid == 0: os._exit(7)\n\
             print(os.waitpid(pid, 0)[1], os.environ.get('LD_PRELOAD'))\n\
             sys.exit(5)",
        ],
        &[
            "sqlite3",
            ":memory:",
            "create table t(a,b); with recursive c(x) as (select 1 union all select x+1 from c where x<20000) insert into t select x, x*2 from c; \
             select count(*), sum(b) from t; select group_concat(a) from t where a % 97 = 0; select nonsense;",
        ],
        &[
            "node",
            "-e",
            "let a = []; for (let i = 0; i < 1e5; i++) a.push({ i }); console.log(a.length, process.env.LD_PRELOAD); \
             console.log(require('child_process').execSync('echo from child').toString()); process.exitCode = 9",
        ],
        &[
            "vim",
            "-es",
            "-u",
            "NONE",
            "-i",
            "NONE",
            "-c",
            "e text",
            "-c",
            "%s/line/LINE/g",
            "-c",
            "1,200p",
            "-c",
            "cq 3",
        ],
    ];
    for command in rows {
        check(folder.path(), command);
    }
}

#[test]
fn compiler() {
    let folder = inputs();
    check(
        folder.path(),
        &["gcc", "-O2", "-g", "-S", "-o", "-", "big.c"],
    );
    check(folder.path(), &["gcc", "-fsyntax-only", "-Wall", "text"]);
    let cc1 = Command::new("gcc")
        .arg("-print-prog-name=cc1")
        .output()
        .expect("gcc runs");
    let cc1 = String::from_utf8_lossy(&cc1.stdout).trim().to_owned();
    check(
        folder.path(),
        &["sh", "-c", &format!("exec {cc1} -quiet -O1 big.c -o -")],
    );
}
