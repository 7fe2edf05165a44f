//! *Does the program go on when the command is stopped?* (`SIGSTOP`: not what the terminal sends, which stops both.)

mod harness;

use harness::{compile, eventually, pointee};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;

#[test]
fn a_program_that_forks_more_than_its_socket_holds_ends() {
    // As many as the kernel keeps for a socket that nobody reads (unix(7)), and some more: each of those waits.
    let queue = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen");
    let queue: u32 = queue
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(10);
    let source = format!(
        r#"
        #include <stdio.h>
        #include <sys/wait.h>
        #include <unistd.h>
        int main(void) {{
            char c;
            puts("ready");
            fflush(stdout);
            read(0, &c, 1);
            for (int i = 0; i < {queue} + 4; i++) {{
                pid_t child = fork();
                if (child == 0) _exit(0);
                waitpid(child, 0, 0);
            }}
            FILE *done = fopen("done", "w");
            fclose(done);
        }}
    "#
    );
    let (folder, program) = compile(&source, &[]);
    let mut command = pointee()
        .args(["run", "--report", "report", "--"])
        .arg(program)
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    assert_eq!(harness::process::line(&mut command), "ready");
    let id = Pid::from_raw(command.id() as i32);
    kill(id, Signal::SIGSTOP).expect("stops");
    drop(command.stdin.take());
    let done = folder.path().join("done");
    assert!(eventually(|| done.exists()), "it waits for the command");
    kill(id, Signal::SIGCONT).expect("goes on");
    assert!(command.wait().expect("ends").success());
}
