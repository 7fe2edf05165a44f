//! *Does patched code run as it did?* In this process: functions with awkward prologues, then
//! whole libraries with every function of theirs patched at once, doing real work.
//!
//! One test only, for it patches libc under its own feet: nothing else may run meanwhile.
#![allow(unsafe_code)] // calls code by address, maps and writes memory: there is no other way
#![allow(missing_docs)]

mod binaries;
mod process;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

use pointee_patch::Refusal;

use process::{Hooked, Library, Stub, hook_all};

#[test]
fn patched_code_runs_as_it_did() {
    prologues();
    whole_library("libsqlite3.so.0", sqlite);
    whole_library("libstdc++.so.6", cplusplus);
    whole_library("libm.so.6", math);
    whole_library("libc.so.6", libc_work);
    whole_library("libpython3.11.so.1.0", python);
}

fn build(source: &str, compiler: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixture")
        .join(source);
    let name = source.file_stem().expect("a name").to_string_lossy();
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.so"));
    let status = Command::new(compiler)
        .args(["-O2", "-shared", "-fPIC", "-pthread", "-o"])
        .arg(&library)
        .arg(&source)
        .status()
        .expect("a compiler");
    assert!(status.success(), "{}", source.display());
    library
}

/// What a row of [`prologues`] expects.
enum Expect {
    /// As many runs of the hook as calls.
    Hooked,
    /// The argument's number of them.
    PerIteration,
    Refused(Refusal),
}

fn prologues() {
    use Expect::{Hooked as Once, PerIteration, Refused};
    let rows = [
        ("rip_load", Once),
        ("rip_immediate", Once),
        ("jump_if_short", Once),
        ("jump_if_near", Once),
        ("flags_live", Once),
        ("jump_short", Once),
        ("if_count_zero", Once),
        ("count_down", Once),
        ("call_first", Once),
        ("call_indirect", Once),
        ("call_register", Once),
        ("landing_mark", Once),
        ("two_bytes", Once),
        ("red_zone", Once),
        ("short_loop", Once),
        ("loop_head", PerIteration),
        ("over_return", Once),
        ("into_pad", Refused(Refusal::InwardBranch)),
    ];
    let library = Library::open(&build("prologues.s", "gcc"));
    let inputs = [1, 2, 3, 4, 100];
    for (name, expect) in rows {
        let at = library.symbol(name);
        // SAFETY: the fixture's functions take and return one number in registers.
        let function: extern "C" fn(u64) -> u64 = unsafe { std::mem::transmute(at.0) };
        let call = |input: u64| function(input);
        let before = inputs.map(call);
        for stub in [Stub::Register, Stub::Transparent] {
            let hooked: Result<Hooked, Refusal> = library.hook(at, stub);
            let hooked = match (hooked, &expect) {
                (Ok(hooked), Once | PerIteration) => hooked,
                (Err(found), Refused(expected)) if found == *expected => continue,
                (found, _) => panic!("{name}: {:?}", found.err()),
            };
            assert_eq!(inputs.map(call), before, "{name}");
            let expected = match expect {
                PerIteration => inputs.iter().sum(),
                _ => inputs.len() as u64,
            };
            assert_eq!(hooked.count(), expected, "{name}");
            hooked.remove();
            assert_eq!(inputs.map(call), before, "{name}");
            assert_eq!(hooked.count(), expected, "{name} after removal");
        }
    }
}

/// Patches every function of a library and has it do `work`, whose results must not change.
fn whole_library(name: &str, work: fn(&Library) -> Vec<String>) {
    let Some(path) = binaries::paths().into_iter().find(|p| p.ends_with(name)) else {
        eprintln!("{name}: not there");
        return;
    };
    let library = Library::open(&path);
    let before = work(&library);
    let text = library.text();
    let (hooked, refused) = hook_all(&library);
    let during = work(&library);
    hooked.remove();
    let counts = hooked.counts();
    assert_eq!(library.text(), text, "{name}: removal leaves a trace");
    let after = work(&library);
    assert_eq!(hooked.counts(), counts, "{name}: a hook ran after removal");
    assert_eq!(during, before, "{name}");
    assert_eq!(after, before, "{name}");
    let ran = counts.iter().filter(|&&c| c > 0).count();
    eprintln!(
        "{name}: {} functions hooked, {refused} refused, {ran} ran, {} calls",
        counts.len(),
        counts.iter().sum::<u64>()
    );
    assert!(ran > 20, "{name}: {ran} hooks ran");
}

fn sqlite(library: &Library) -> Vec<String> {
    type Open = extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
    type Row = extern "C" fn(*mut c_void, c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;
    type Exec = extern "C" fn(
        *mut c_void,
        *const c_char,
        Option<Row>,
        *mut c_void,
        *mut *mut c_char,
    ) -> c_int;
    type Close = extern "C" fn(*mut c_void) -> c_int;
    extern "C" fn row(
        rows: *mut c_void,
        n: c_int,
        values: *mut *mut c_char,
        _: *mut *mut c_char,
    ) -> c_int {
        // SAFETY: the vector that `exec` was given, and `n` strings or nulls from sqlite.
        unsafe {
            let rows = &mut *rows.cast::<Vec<String>>();
            for i in 0..n as usize {
                let value = *values.add(i);
                let text = if value.is_null() {
                    c"NULL"
                } else {
                    CStr::from_ptr(value)
                };
                rows.push(text.to_string_lossy().into_owned());
            }
        }
        0
    }
    // SAFETY: signatures as in sqlite3.h.
    let (open, exec, close) = unsafe {
        (
            std::mem::transmute::<u64, Open>(library.symbol("sqlite3_open").0),
            std::mem::transmute::<u64, Exec>(library.symbol("sqlite3_exec").0),
            std::mem::transmute::<u64, Close>(library.symbol("sqlite3_close").0),
        )
    };
    let mut rows: Vec<String> = Vec::new();
    let mut database = std::ptr::null_mut();
    assert_eq!(open(c":memory:".as_ptr(), &raw mut database), 0);
    for statement in [
        c"create table t(a integer primary key, b text, c real); create index i on t(b)",
        c"with recursive n(x) as (select 1 union all select x+1 from n where x < 3000) \
          insert into t select x, printf('%05d', x*7919%3000), x/7.0 from n",
        c"select count(*), sum(a), avg(c), max(b), min(b) from t where b like '%9%'",
        c"select a, b from t order by b desc limit 20; update t set c = null where a % 3 = 0",
        c"select t.b, u.c from t join t u on t.a = u.a + 1 where t.b between '00100' and '00150'",
        c"delete from t where a > 1000; select json_group_array(a) from t where a < 20; vacuum",
        c"select group_concat(hex(b)), total(c) from (select * from t order by a limit 50)",
        c"select no_such_function(1)",
    ] {
        let status = exec(
            database,
            statement.as_ptr(),
            Some(row),
            (&raw mut rows).cast(),
            std::ptr::null_mut(),
        );
        rows.push(status.to_string());
    }
    assert_eq!(close(database), 0);
    assert!(rows.len() > 100);
    rows
}

fn cplusplus(_: &Library) -> Vec<String> {
    let fixture = Library::open(&build("exceptions.cc", "g++"));
    // SAFETY: the fixture's function takes nothing and returns a number.
    let exercise: extern "C" fn() -> u64 =
        unsafe { std::mem::transmute(fixture.symbol("exercise").0) };
    vec![exercise().to_string()]
}

fn math(library: &Library) -> Vec<String> {
    const UNARY: &[&str] = &[
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "sqrt",
        "cbrt",
        "ceil",
        "floor",
        "round",
        "trunc",
        "rint",
        "nearbyint",
        "erf",
        "erfc",
        "tgamma",
        "lgamma",
        "j0",
        "j1",
        "y0",
        "y1",
        "logb",
        "fabs",
        "significand",
    ];
    let mut results = Vec::new();
    for name in UNARY {
        // SAFETY: functions of one double, as in math.h.
        let function: extern "C" fn(f64) -> f64 =
            unsafe { std::mem::transmute(library.symbol(name).0) };
        for input in [
            0.0,
            0.25,
            1.0,
            -1.5,
            3.0,
            1e10,
            1e-300,
            f64::NAN,
            f64::INFINITY,
            -0.0,
        ] {
            results.push(format!("{name} {:x}", function(input).to_bits()));
        }
    }
    results
}

fn libc_work(_: &Library) -> Vec<String> {
    let mut results = Vec::new();
    let mut text = [0_u8; 256];
    // SAFETY: libc's functions with arguments as their manuals ask for.
    unsafe {
        let len = libc::snprintf(
            text.as_mut_ptr().cast(),
            text.len(),
            c"%s %d %g %-8lx|%p".as_ptr(),
            c"text".as_ptr(),
            -42_i32,
            2.5_f64,
            255_u64,
            0x1234_u64,
        );
        results.push(String::from_utf8_lossy(&text[..len as usize]).into_owned());
        for number in [c"0x1fz", c"-17", c"99999999999999999999", c""] {
            results.push(libc::strtoul(number.as_ptr(), std::ptr::null_mut(), 0).to_string());
            results.push(libc::strtod(number.as_ptr(), std::ptr::null_mut()).to_string());
        }
        extern "C" fn order(a: *const c_void, b: *const c_void) -> c_int {
            // SAFETY: qsort hands out pointers to elements.
            unsafe { (*a.cast::<u32>()).cmp(&*b.cast::<u32>()) as c_int }
        }
        let mut numbers: Vec<u32> = (0..5000_u32)
            .map(|i| i.wrapping_mul(2_654_435_761))
            .collect();
        libc::qsort(numbers.as_mut_ptr().cast(), numbers.len(), 4, Some(order));
        results.push(numbers.is_sorted().to_string());
        let time = 86_400 * 365;
        let mut parts: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&raw const time, &raw mut parts);
        results.push(format!("{} {}", parts.tm_year, parts.tm_yday));
        let mut blocks = Vec::new();
        for size in (1..4000).step_by(7) {
            let block = libc::realloc(libc::calloc(1, size), size * 3);
            libc::memset(block, 1, size * 3);
            blocks.push(block);
        }
        blocks.into_iter().for_each(|block| libc::free(block));
        results.push(libc::fnmatch(c"*.rs".as_ptr(), c"lib.rs".as_ptr(), 0).to_string());
    }
    let threads: Vec<_> = (0..4_u64)
        .map(|i| {
            std::thread::spawn(move || {
                (0..1000)
                    .map(|n| format!("{n}").len() as u64 * i)
                    .sum::<u64>()
            })
        })
        .collect();
    results.extend(
        threads
            .into_iter()
            .map(|t| t.join().expect("a thread's sum").to_string()),
    );
    let child = Command::new("/bin/sh")
        .args(["-c", "echo $((6*7)); exit 3"])
        .output();
    let child = child.expect("a shell");
    results.push(format!("{:?} {:?}", child.status.code(), child.stdout));
    let folder = std::fs::read_dir("/etc").expect("a folder").count();
    results.push((folder > 10).to_string());
    let caught = std::panic::catch_unwind(|| std::panic::resume_unwind(Box::new(7_u8)));
    results.push(format!(
        "{:?}",
        caught.map_err(|payload| payload.downcast::<u8>().ok())
    ));
    results
}

fn python(library: &Library) -> Vec<String> {
    const SCRIPT: &str = include_str!("fixture/exercise.py");
    type Run = extern "C" fn(*const c_char) -> c_int;
    // SAFETY: signatures as in Python's pylifecycle.h and pythonrun.h.
    let (initialize, run) = unsafe {
        (
            std::mem::transmute::<u64, extern "C" fn(c_int)>(library.symbol("Py_InitializeEx").0),
            std::mem::transmute::<u64, Run>(library.symbol("PyRun_SimpleString").0),
        )
    };
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-result");
    initialize(0);
    let script = format!("OUT = {:?}\n{SCRIPT}", out.display().to_string());
    let script = CString::new(script).expect("no zero bytes");
    assert_eq!(run(script.as_ptr()), 0);
    vec![std::fs::read_to_string(out).expect("the script's result")]
}
