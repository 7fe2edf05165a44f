//! Link arguments of the runtime: no start files and no libraries, constructor before all others.

fn main() {
    for argument in [
        "-nostdlib",
        "-nostartfiles",
        // The dynamic linker runs this object's constructor before any other's.
        "-Wl,-z,initfirst",
        "-Wl,-z,now",
        "-Wl,-z,relro",
        "-Wl,-z,defs",
        "-Wl,-z,noexecstack",
        "-Wl,--hash-style=both",
        "-Wl,--gc-sections",
        "-Wl,-soname,libpointee.so",
    ] {
        println!("cargo:rustc-link-arg-cdylib={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
