//! `pointee probe` on real programs: outputs are the same, counts are what arithmetic says.

mod harness;

use harness::pointee;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Runs `command` under `probe`, and gives its output and the modules of its report.
fn probe(options: &[&str], command: &[&str]) -> (Output, Vec<Value>) {
    let (mut report, output) = harness::json_report("probe", options, command);
    let Value::Array(modules) = report["modules"].take() else {
        panic!("no modules");
    };
    (output, modules)
}

fn module<'m>(modules: &'m [Value], name: &str) -> &'m Value {
    let named = |module: &&Value| {
        module["module"]
            .as_str()
            .is_some_and(|path| path.contains(name))
    };
    modules
        .iter()
        .find(named)
        .unwrap_or_else(|| panic!("no module {name} among {modules:?}"))
}

/// Offset and count of each point of `function` that was hit.
fn hits(module: &Value, function: &str) -> Vec<(u64, u64)> {
    let hits = module["hits"].as_array().expect("hits").iter();
    hits.filter(|hit| hit["function"] == function)
        .map(|hit| {
            (
                hit["offset"].as_u64().expect("a number"),
                hit["count"].as_u64().expect("a number"),
            )
        })
        .collect()
}

/// How often `function` was entered.
fn entries(module: &Value, function: &str) -> u64 {
    hits(module, function)
        .iter()
        .find(|(offset, _)| *offset == 0)
        .map_or(0, |(_, count)| *count)
}

fn compile(compiler: &str, name: &str, source: &str, flags: &[&str]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join(name);
    let program = folder.path().join("program");
    std::fs::write(&file, source).expect("writes");
    let status = Command::new(compiler)
        .arg("-o")
        .arg(&program)
        .arg(&file)
        .args(flags)
        .status()
        .unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(status.success(), "the program compiles");
    (folder, program)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The output and end of `command` are the same under `probe`, for each kind of point.
fn check_same(command: &[&str], kinds: &[&str]) {
    let plain = Command::new(command[0])
        .args(&command[1..])
        .output()
        .expect("runs");
    for kind in kinds {
        let (probed, modules) = probe(&["--at", kind], command);
        assert_eq!(
            probed.status, plain.status,
            "{command:?} at {kind}: {probed:?}"
        );
        assert_eq!(probed.stdout, plain.stdout, "{command:?} at {kind}");
        assert_eq!(probed.stderr, plain.stderr, "{command:?} at {kind}");
        assert!(!modules.is_empty(), "{command:?} at {kind}");
        for module in &modules {
            let (points, placed) = (module["points"].as_u64(), module["placed"].as_u64());
            let (points, placed) = (points.expect("a number"), placed.expect("a number"));
            let refused = module["refused"].as_array().map_or(0, Vec::len) as u64;
            assert_eq!(
                placed + refused,
                points,
                "{command:?} at {kind}: {}",
                module["module"]
            );
        }
    }
}

const ALL: [&str; 5] = ["entry", "call", "jump", "syscall", "instruction"];

const LOOP: &str = r#"
    #include <stdio.h>
    __attribute__((noinline)) long step(long i) { return i * 3 + 1; }
    __attribute__((noinline)) long sum(long n) {
        long s = 0;
        for (long i = 0; i < n; i++) s += step(i);
        return s;
    }
    int main(void) { printf("%ld\n", sum(1000)); return 7; }
"#;

#[test]
fn a_loop_is_counted_exactly() {
    for compiler in ["gcc", "clang"] {
        for level in ["-O0", "-O2"] {
            let (_folder, program) = compile(compiler, "p.c", LOOP, &[level]);
            let (output, modules) = probe(&["--module", "program"], &[text(&program)]);
            assert_eq!(
                (output.status.code(), &*output.stdout),
                (Some(7), &b"1499500\n"[..])
            );
            let counted = module(&modules, "program");
            assert_eq!(
                (
                    entries(counted, "step"),
                    entries(counted, "sum"),
                    entries(counted, "main")
                ),
                (1000, 1, 1)
            );
            let (_, modules) = probe(
                &["--at", "instruction", "--module", "program"],
                &[text(&program)],
            );
            let counted = module(&modules, "program");
            let step = hits(counted, "step");
            assert!(
                step.iter().all(|(_, count)| *count == 1000),
                "{compiler} {level}: {step:?}"
            );
            let sum = hits(counted, "sum");
            let odd = sum
                .iter()
                .filter(|(_, count)| ![1, 1000, 1001].contains(count));
            assert_eq!(odd.count(), 0, "{compiler} {level}: {sum:?}");
            let (_, modules) = probe(
                &["--at", "call", "--module", "program", "--function", "sum"],
                &[text(&program)],
            );
            let calls = hits(module(&modules, "program"), "sum");
            assert_eq!(
                calls.iter().map(|(_, count)| *count).collect::<Vec<_>>(),
                [1000],
                "{compiler} {level}"
            );
        }
    }
}

#[test]
fn threads_and_children_are_counted_exactly() {
    let source = r#"
        #include <pthread.h>
        #include <stdio.h>
        #include <sys/wait.h>
        #include <unistd.h>
        __attribute__((noinline)) void hot(void) { __asm__ volatile(""); }
        static void *work(void *n) { for (long i = 0; i < (long)n; i++) hot(); return 0; }
        int main(void) {
            work((void *)1000);
            pthread_t threads[4];
            for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, work, (void *)300000);
            for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
            pid_t child = fork();
            work((void *)200000);
            if (child == 0) _exit(0);
            waitpid(child, 0, 0);
            puts("done");
        }
    "#;
    let (_folder, program) = compile("gcc", "p.c", source, &["-O1", "-pthread"]);
    for kind in ["entry", "instruction"] {
        let (output, modules) = probe(&["--at", kind], &[text(&program)]);
        assert_eq!(&*output.stdout, b"done\n");
        assert_eq!(
            entries(module(&modules, "program"), "hot"),
            1000 + 4 * 300_000 + 2 * 200_000,
            "{kind}"
        );
    }
}

const UNWINDING: &str = r#"
    #include <cstdio>
    #include <csetjmp>
    #include <execinfo.h>
    #include <pthread.h>
    #include <stdexcept>
    #include <string>
    #include <unistd.h>
    struct Guard { const char *name; ~Guard() { std::printf("~%s\n", name); } };
    __attribute__((noinline)) int thrower(int n) {
        Guard guard{"thrower"};
        if (n == 0) throw std::runtime_error("bottom");
        int below = thrower(n - 1);
        __asm__ volatile("");
        return below + 1;
    }
    __attribute__((noinline)) int filter(int n) {
        try { return thrower(n); }
        catch (std::logic_error &) { return -1; }
    }
    static std::jmp_buf environment;
    __attribute__((noinline)) void jumper(int n) { if (n == 0) std::longjmp(environment, 5); jumper(n - 1); __asm__ volatile(""); }
    __attribute__((noinline)) int depth() { void *frames[64]; int n = backtrace(frames, 64); __asm__ volatile(""); return n; }
    __attribute__((noinline)) int deeper(int n) { int d = n ? deeper(n - 1) : depth(); __asm__ volatile(""); return d; }
    static void *cancelled(void *) { Guard guard{"cancelled"}; for (;;) pause(); return nullptr; }
    int main() {
        for (int i = 0; i < 3; i++)
            try { std::printf("%d\n", filter(i)); }
            catch (std::exception &error) { std::printf("caught %s\n", error.what()); }
        try { std::stoi("x"); } catch (std::invalid_argument &error) { std::printf("caught %s\n", error.what()); }
        int value = setjmp(environment);
        if (value == 0) jumper(3);
        std::printf("jumped %d\n", value);
        int shallow = deeper(0), deep = deeper(10);
        std::printf("frames %d\n", deep - shallow);
        pthread_t thread;
        pthread_create(&thread, nullptr, cancelled, nullptr);
        usleep(50000);
        pthread_cancel(thread);
        void *result;
        pthread_join(thread, &result);
        std::printf("cancelled %d\n", result == PTHREAD_CANCELED);
    }
"#;

#[test]
fn exceptions_jumps_backtraces_and_cancellation_go_through() {
    for (compiler, level) in [("g++", "-O0"), ("g++", "-O2"), ("clang++", "-O2")] {
        let (_folder, program) = compile(compiler, "p.cc", UNWINDING, &[level, "-pthread"]);
        let plain = Command::new(&program).output().expect("runs");
        assert!(plain.status.success());
        check_same(&[text(&program)], &ALL);
    }
}

#[test]
fn libraries_loaded_later_are_counted() {
    let library = "int tripled(int x) { int y = x * 3; return y; }";
    let (folder, path) = compile("gcc", "l.c", library, &["-O0", "-shared", "-fPIC"]);
    let plugin = folder.path().join("plugin.so");
    std::fs::rename(path, &plugin).expect("renames");
    let source = r#"
        #include <dlfcn.h>
        #include <stdio.h>
        int main(int argc, char **argv) {
            int total = 0;
            for (int round = 0; round < 50; round++) {
                void *library = dlopen(argv[1], RTLD_NOW);
                int (*tripled)(int) = (int (*)(int))dlsym(library, "tripled");
                for (int i = 0; i < 100; i++) total += tripled(i);
                dlclose(library);
            }
            printf("%d\n", total);
        }
    "#;
    let (_folder, program) = compile("gcc", "p.c", source, &["-O1"]);
    for kind in ["entry", "instruction"] {
        let (output, modules) = probe(&["--at", kind], &[text(&program), text(&plugin)]);
        assert_eq!(&*output.stdout, b"742500\n", "{kind}");
        assert_eq!(
            entries(module(&modules, "plugin.so"), "tripled"),
            5000,
            "{kind}"
        );
    }
}

#[test]
fn real_programs_do_not_notice() {
    let rows: [&[&str]; 8] = [
        &["/bin/true"],
        &["sh", "-c", "echo a | tr a b; exit 3"],
        &["gzip", "-kc", "/usr/bin/perl"],
        &["xz", "-0kc", "/bin/ls"],
        &[
            "perl",
            "-e",
            "my %h; $h{$_ % 97} .= $_ for 1..3000; print join ',', map { \"$_=$h{$_}\" } sort keys %h; die 'end'",
        ],
        &[
            "sqlite3",
            ":memory:",
            "create table t(a); with recursive c(x) as (select 1 union all select x+1 from c where x<2000) insert into t select x*x from c; select sum(a), avg(a), count(*) from t group by a % 7;",
        ],
        &[
            "/usr/bin/python3.11",
            "-c",
            "import json, re, hashlib; print(hashlib.sha256(json.dumps([re.sub('a', str(i), 'banana') for i in range(500)]).encode()).hexdigest())",
        ],
        &["openssl", "dgst", "-sha256", "-sha512", "/bin/ls"],
    ];
    for command in rows {
        if Command::new("which")
            .arg(command[0])
            .output()
            .is_ok_and(|found| found.status.success())
        {
            check_same(command, &ALL);
        }
    }
}

#[test]
fn a_dry_run_has_the_same_table_and_runs_nothing() {
    let output = pointee()
        .args(["probe", "--format", "json", "--dry-run", "/bin/gzip"])
        .output()
        .expect("runs");
    let dry: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let (_, modules) = probe(&["--module", "gzip"], &["gzip", "--version"]);
    let wet = module(&modules, "gzip");
    for key in ["points", "placed", "tactics", "refused"] {
        assert_eq!(dry["modules"][0][key], wet[key], "{key}");
    }
    assert_eq!(dry["modules"][0]["hits"], Value::Array(Vec::new()));
}

#[test]
fn what_cannot_be_probed_is_said() {
    let rows: [(&[&str], i32, &str); 3] = [
        (&["probe", "--", "/no/such/program"], 127, "No such file"),
        (
            &["probe", "--dry-run", "/etc/passwd"],
            125,
            "not a 64-bit little-endian ELF file",
        ),
        (&["probe"], 125, "required"),
    ];
    for (words, status, message) in rows {
        let output = pointee().args(words).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
        assert!(said.contains(message), "{words:?}: {said}");
    }
}

/// Functions that leave little room, each called a hundred times: name, assembly, what it returns.
const TIGHT: [(&str, &str, u64); 10] = [
    // A five-byte instruction.
    ("long_first", "mov $7, %eax; ret", 7),
    // Five bytes of neighbours.
    (
        "short_first",
        "push %rbp; mov %rsp, %rbp; mov $1, %al; movzbl %al, %eax; pop %rbp; ret",
        1,
    ),
    // Two bytes, then another function: a relay, in whatever is dead near by.
    ("two_bytes", "jmp .Lfar_two_bytes", 9),
    // One byte, then another function: only its callers can be changed.
    ("one_byte", "ret", 100),
    // A branch into the first five bytes.
    (
        "inward",
        "xor %eax, %eax; 1: inc %eax; cmp $5, %eax; jne 1b; ret",
        5,
    ),
    // The carry is read again after instructions that leave it alone, and the other flags too.
    (
        "flags",
        "mov $-1, %rax; mov $3, %edx; add %rdx, %rax; mov $0, %eax; mov (%rsp), %rcx; adc $0, %eax; \
      mov $5, %ecx; cmp $6, %ecx; mov (%rsp), %rcx; mov %rcx, -8(%rsp); setl %cl; movzbl %cl, %ecx; lea (%rax,%rcx,2), %eax; ret",
        3,
    ),
    // Overflow and parity, with every register in use.
    (
        "overflow",
        "mov $0x7f, %al; add $1, %al; mov (%rsp), %rdx; seto %dl; mov -16(%rsp), %rcx; setp %cl; movzbl %dl, %edx; movzbl %cl, %ecx; \
      lea (%rdx,%rcx,4), %eax; ret",
        1,
    ),
    // Data below the stack pointer.
    (
        "red_zone",
        "movq $11, -8(%rsp); movq $12, -128(%rsp); mov $5, %ecx; cmp $5, %ecx; mov -8(%rsp), %rax; jne 1f; add -128(%rsp), %rax; 1: ret",
        23,
    ),
    // `loop` and `jrcxz` have short forms only.
    (
        "loops",
        "mov $4, %ecx; xor %eax, %eax; 1: add $2, %eax; loop 1b; jrcxz 2f; ud2; 2: ret",
        8,
    ),
    // A call of a register, returning into a two-byte rest.
    (
        "calls",
        "push %rbx; lea long_first(%rip), %rax; call *%rax; pop %rbx; ret",
        7,
    ),
];

#[test]
fn tight_places_are_counted_exactly() {
    let mut source = String::from(
        "#include <stdio.h>\n__asm__(\".text\\n.Lfar_two_bytes: mov $9, %eax; ret\\n\"\n",
    );
    for (name, assembly, _) in TIGHT {
        source += &format!(
            "\"{name}: .type {name}, @function; {assembly}; .size {name}, . - {name}\\n\"\n"
        );
    }
    source += ");\n";
    for (name, _, _) in TIGHT {
        source += &format!("extern long {name}(long) __asm__(\"{name}\");\n");
    }
    source += "int main(void) { long sum = 0; for (long i = 0; i < 100; i++) { long value;\n";
    for (name, _, expect) in TIGHT {
        // `one_byte` returns what is in the register.
        source += &format!(
            "__asm__ volatile(\"call {name}\" : \"=a\"(value) : \"a\"(100) : \"rcx\", \"rdx\", \"rsi\", \"rdi\", \"r8\", \"r9\", \"r10\", \"r11\", \"cc\", \"memory\");\n"
        );
        source += &format!(
            "if ((unsigned)value != {expect}) printf(\"{name} %ld\\n\", value); sum += (unsigned)value;\n"
        );
    }
    source += "} printf(\"%ld\\n\", sum); return 0; }\n";
    // The assembly's calls want no red zone in main.
    let (_folder, program) = compile("gcc", "p.c", &source, &["-O1", "-mno-red-zone"]);
    let sum: u64 = TIGHT.iter().map(|(_, _, value)| 100 * value).sum();
    let expect = format!("{sum}\n");
    let plain = Command::new(&program).output().expect("runs");
    assert_eq!(
        String::from_utf8_lossy(&plain.stdout),
        expect,
        "without probes"
    );
    for kind in ALL {
        let (output, modules) = probe(&["--at", kind, "--module", "program"], &[text(&program)]);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            expect,
            "{kind}: {output:?}"
        );
        if !["entry", "instruction"].contains(&kind) {
            continue;
        }
        let counted = module(&modules, "program");
        for (name, _, _) in TIGHT {
            // It is called by another one of them, too.
            let calls = if name == "long_first" { 200 } else { 100 };
            assert_eq!(
                entries(counted, name),
                calls,
                "{kind} {name}: {}",
                counted["refused"]
            );
        }
        assert!(
            kind == "entry"
                || hits(counted, "loops")
                    .iter()
                    .any(|(_, count)| *count == 400),
            "{kind}"
        );
    }
}

#[test]
fn an_object_whose_code_was_changed_before_is_refused_in_words() {
    let breaks = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdint.h>
        #include <sys/mman.h>
        __attribute__((constructor)) static void set_breakpoint(void) {
            unsigned char *at = dlsym(RTLD_DEFAULT, "never_called");
            if (!at) return;
            void *page = (void *)((uintptr_t)at & -4096);
            mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC);
            *at = 0xcc;
            mprotect(page, 8192, PROT_READ | PROT_EXEC);
        }
    "#;
    let flags = ["-shared", "-fPIC", "-Wl,-z,initfirst"];
    let (_library_folder, library) = compile("gcc", "p.c", breaks, &flags);
    let source = "#include <stdio.h>\nint never_called(int n) { return n * 3 + 1; }\nint main(void) { puts(\"done\"); return 0; }\n";
    let (_folder, program) = compile("gcc", "p.c", source, &["-O1", "-rdynamic"]);
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("report");
    for (preload, refused) in [("", false), (text(&library), true)] {
        let output = harness::pointee()
            .args([
                "probe", "--module", "program", "--format", "json", "--report",
            ])
            .arg(&file)
            .arg("--")
            .arg(&program)
            .env("LD_PRELOAD", preload)
            .output()
            .expect("runs");
        assert_eq!(output.stdout, b"done\n", "{output:?}");
        let report = std::fs::read(&file).expect("a report");
        let report: Value = serde_json::from_slice(&report).expect("JSON");
        let row = &report["modules"][0];
        assert_eq!(row["placed"] == 0, refused, "{row}");
        let whys = row["refused"].as_array().expect("rows");
        let told = |row: &Value| {
            let why = row["why"].as_str().expect("words");
            why.contains("its code in memory is not the file's")
        };
        assert_eq!(!whys.is_empty() && whys.iter().all(told), refused, "{row}");
    }
}

/// Functions of one byte that pointers lead to, each called so often: where no more than the first byte of a jump has room.
const SINGLE: [(&str, &str, u64); 5] = [
    // Its bytes are dead once it is displaced.
    (
        "before",
        "mov %rdi, %rax; add $1, %rax; imul $3, %rax, %rax; xor $5, %rax; add $77, %rax; sub $9, %rax; or $1, %rax; ret",
        3,
    ),
    // Behind it, a jump of one byte.
    ("one", "ret", 5),
    // Behind it, a jump of five bytes or more.
    ("two", "ret", 7),
    (
        "after",
        "mov %rdi, %rax; add $2, %rax; imul $5, %rax, %rax; xor $3, %rax; add $55, %rax; and $-2, %rax; ret",
        11,
    ),
    // Entered at its second byte, too.
    (
        "entered",
        "push %rbx; 1: dec %rdi; jg 1b; mov $1, %eax; mov %rax, %rbx; pop %rbx; ret",
        13,
    ),
];

#[test]
fn jumps_of_one_byte_share_the_next() {
    let mut source = String::from("#include <stdio.h>\n__asm__(\".text\\n\"\n");
    for (name, assembly, _) in SINGLE {
        source += &format!(
            "\"{name}: .type {name}, @function; {assembly}; .size {name}, . - {name}\\n\"\n"
        );
    }
    source += ");\n";
    let names = SINGLE.map(|(name, ..)| name).join(", ");
    source += &format!("extern long {}(long);\n", names.replace(", ", "(long), "));
    source += &format!("static long (*volatile const functions[])(long) = {{{names}}};\n");
    let counts = SINGLE.map(|(.., count)| count.to_string()).join(", ");
    source += &format!(
        "int main(void) {{ static const int counts[] = {{{counts}}}; long sum = 0; \
         for (int f = 0; f < 5; f++) for (int i = 0; i < counts[f]; i++) sum += f == 1 || f == 2 ? (functions[f](i), 1) : functions[f](i); \
         printf(\"%ld\\n\", sum); return 0; }}\n"
    );
    let (_folder, program) = compile("gcc", "p.c", &source, &["-O1"]);
    let plain = Command::new(&program).output().expect("runs");
    for kind in ["entry", "instruction"] {
        let options = ["--at", kind, "--module", "program", "--no-traps"];
        let (output, modules) = probe(&options, &[text(&program)]);
        assert_eq!(output.stdout, plain.stdout, "{kind}: {output:?}");
        let counted = module(&modules, "program");
        for (name, _, count) in SINGLE {
            let refused = &counted["refused"];
            assert_eq!(entries(counted, name), count, "{kind} {name}: {refused}");
        }
        assert!(
            counted["tactics"]["overlap"].as_u64() >= Some(2),
            "{kind}: {}",
            counted["tactics"]
        );
    }
}

#[test]
fn a_debugger_sees_the_callers() {
    let source = r#"
        #include <stdio.h>
        #include <unistd.h>
        __attribute__((noinline)) int innermost(int n) { puts("here"); fflush(stdout); pause(); __asm__ volatile(""); return n; }
        __attribute__((noinline)) int middle(int n) { int m = innermost(n + 1); __asm__ volatile(""); return m + 1; }
        __attribute__((noinline)) int outer(int n) { int m = middle(n + 1); __asm__ volatile(""); return m + 1; }
        int main(int argc, char **argv) { return outer(argc); }
    "#;
    let (_folder, program) = compile("gcc", "p.c", source, &["-O1", "-g"]);
    for kind in ["entry", "call", "instruction"] {
        use std::io::{BufRead, BufReader};
        let mut supervisor = pointee()
            .args(["probe", "--at", kind, "--report", "/dev/null", "--"])
            .arg(&program)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let out = supervisor.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let children = format!("/proc/{0}/task/{0}/children", supervisor.id());
        let pids = std::fs::read_to_string(children).expect("children");
        let pid = pids.trim().to_owned();
        std::thread::sleep(std::time::Duration::from_millis(200));
        let shown = Command::new("gdb")
            .args(["-q", "-batch", "-ex", "bt", "-p", &pid])
            .output()
            .expect("gdb runs");
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let _ = Command::new("kill").args(["-9", &pid]).status();
        let _ = supervisor.wait();
        let at = |name: &str| {
            shown
                .find(&format!(" {name} ("))
                .unwrap_or_else(|| panic!("{kind}: no {name} in {shown}"))
        };
        assert!(
            at("innermost") < at("middle")
                && at("middle") < at("outer")
                && at("outer") < at("main"),
            "{kind}: {shown}"
        );
    }
}

const BODIES: &str = r#"
struct item { struct item *next; };
static struct item *freelist, items[10];
long taken;
static inline __attribute__((always_inline)) struct item *take(void)
{
    struct item *item = freelist;
    if (item)
        freelist = item->next;
    __asm__ volatile("" : : "r"(item) : "memory");
    return item;
}
static inline __attribute__((always_inline)) void give(struct item *item)
{
    item->next = freelist;
    freelist = item;
    __asm__ volatile("" : : : "memory");
}
__attribute__((noinline)) void twice(int which)
{
    struct item *one = take(), *other = take();
    taken += which;
    give(one);
    give(other);
}
__attribute__((noinline)) void once(void)
{
    give(take());
}
int main(void)
{
    for (int i = 0; i < 10; i++)
        give(&items[i]);
    for (int i = 0; i < 1000; i++) {
        twice(i);
        if (i % 4 == 0)
            once();
    }
    return 0;
}
"#;

#[test]
fn bodies_without_an_entry_are_found_by_debug_info_and_by_what_they_write() {
    for compiler in ["gcc", "clang"] {
        let (_folder, program) = compile(compiler, "bodies.c", BODIES, &["-O2", "-g"]);
        let command = [program.to_str().expect("a name")];
        let check = |option: &str, name: &str, expect: &[(&str, u64)]| {
            let (_, modules) = probe(&[option, name, "--module", "program"], &command);
            let hits = modules.iter().flat_map(|module| module["hits"].as_array());
            let mut counts = std::collections::BTreeMap::new();
            for hit in hits.flatten() {
                assert_eq!(hit["subject"].as_str(), Some(name), "{hit}");
                let function = hit["function"].as_str().expect("a name");
                *counts.entry(function).or_insert(0) += hit["count"].as_u64().expect("a count");
            }
            let expect = expect.iter().copied().collect();
            assert_eq!(counts, expect, "{compiler} {option} {name}: {modules:?}");
        };
        check("--inlined", "take", &[("once", 250), ("twice", 2000)]);
        check("--written", "taken", &[("twice", 1000)]);
        check(
            "--written",
            "freelist",
            &[("main", 10), ("once", 500), ("twice", 4000)],
        );
    }
}

const VALUES: &str = r#"
#include <pthread.h>
int state;
unsigned char level;
long sum;
static inline __attribute__((always_inline)) void set(int to, unsigned size)
{
    state = to;
    sum += size;
    __asm__ volatile("" : : : "memory");
}
__attribute__((noinline)) void run(int to, unsigned size)
{
    set(to, size);
    level = (unsigned char)size;
    __asm__ volatile("" : : : "memory");
}
static inline __attribute__((always_inline)) void keep(int what, unsigned fixed)
{
    state = what;
    sum += fixed;
    __asm__ volatile("" : : : "memory");
}
/* The last argument comes on the stack, and is there where the body begins. */
__attribute__((noinline)) void stacked(int a, int b, int c, int d, int e, int f, int what)
{
    sum += a + b + c + d + e + f;
    __asm__ volatile("" : : : "memory");
    keep(what, 5);
}
static void *worker(void *unused)
{
    for (unsigned i = 0; i < 1000; i++) {
        run((int)(i % 3) - 1, i);
        stacked((int)i, 1, 2, 3, 4, 5, (int)(i % 3) - 1);
    }
    return unused;
}
int main(void)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], 0, worker, 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], 0);
    state = 77;
    __asm__ volatile("" : : : "memory");
    return 0;
}
"#;

/// What passes a point: constants, registers of several widths, with and without a sign, parameters of inlined bodies, also in memory.
#[test]
fn values_are_counted_where_they_pass() {
    /// Subject, name of the value, function, how often some values came, how often others.
    type Row<'a> = (&'a str, &'a str, &'a str, &'a [(i64, u64)], u64);
    let signs: &[(i64, u64)] = &[(-1, 1336), (0, 1332), (1, 1332)];
    let rows: [(&str, Row<'_>); 7] = [
        ("--written", ("state", "state", "run", signs, 0)),
        ("--written", ("state", "state", "main", &[(77, 1)], 0)),
        ("--inlined", ("set", "to", "run", signs, 0)),
        ("--inlined", ("set", "size", "run", &[], 4000)),
        ("--inlined", ("keep", "what", "stacked", signs, 0)),
        ("--inlined", ("keep", "fixed", "stacked", &[(5, 4000)], 0)),
        ("--written", ("level", "level", "run", &[], 4000)),
    ];
    for compiler in ["gcc", "clang"] {
        let (_folder, program) = compile(compiler, "values.c", VALUES, &["-O2", "-g", "-pthread"]);
        let command = [program.to_str().expect("a name")];
        for (option, (subject, name, function, expect, others)) in rows {
            let (_, modules) = probe(&[option, subject, "--module", "program"], &command);
            let hits = modules.iter().flat_map(|module| module["hits"].as_array());
            let said = format!("{compiler} {option} {subject}: {modules:?}");
            let value = hits
                .flatten()
                .filter(|hit| hit["function"] == function)
                .flat_map(|hit| hit["values"].as_array().into_iter().flatten())
                .find(|value| value["name"] == name)
                .unwrap_or_else(|| panic!("no value: {said}"));
            let pair =
                |row: &serde_json::Value| Some((row["value"].as_i64()?, row["count"].as_u64()?));
            let counts = value["counts"].as_array().expect("counts");
            let counts: Vec<(i64, u64)> = counts.iter().filter_map(pair).collect();
            if others == 0 {
                let mut sorted = counts;
                sorted.sort_unstable();
                assert_eq!(sorted, expect, "{said}");
                continue;
            }
            // More than have a place: all are in the ranges all the same.
            let named: u64 = counts.iter().map(|(_, count)| count).sum();
            assert_eq!(
                named + value["others"].as_u64().expect("a count"),
                others,
                "{said}"
            );
            let ranges = value["ranges"].as_array().expect("ranges").iter();
            let below_eight = ranges.filter(|range| range["to"].as_u64() < Some(8));
            let small: u64 = below_eight
                .filter_map(|range| range["count"].as_u64())
                .sum();
            let expect = if name == "size" { 32 } else { 128 };
            assert_eq!(small, expect, "{said}");
        }
    }
}
