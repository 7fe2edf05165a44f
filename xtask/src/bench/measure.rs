//! *How much did that run take?* — CPU time and memory as the kernel accounts them, and medians over rounds.

#![allow(unsafe_code)] // wait4(2) has no counterpart in std.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What one run took, all its waited-for descendants included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// User and system time, seconds.
    pub(super) cpu: f64,
    /// From start to end, seconds.
    pub(super) elapsed: f64,
    /// The largest resident set of any one of its processes, MiB.
    pub(super) resident: f64,
}

/// Runs `command` to its end; its output is thrown away. An error if it fails.
pub(super) fn usage(command: &mut Command) -> Result<Usage> {
    let null = || File::options().read(true).write(true).open("/dev/null");
    command.stdin(null()?).stdout(null()?).stderr(null()?);
    let shown = crate::shell::shown(command);
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("{shown} does not start"))?;
    let pid = libc::pid_t::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: a struct of integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both places live; the child is ours and nobody else waits for it.
    while unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } != pid {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            bail!("{shown}: wait4: {error}");
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    if !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 0 {
        bail!("{shown}: wait status {status:#x}");
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(Usage {
        cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        elapsed,
        resident: usage.ru_maxrss as f64 / 1024.0,
    })
}

/// Runs each of `variants` once a round, the order shifted by one from round to round; the results by variant.
///
/// A variant that fails gives `None` for that round.
pub(super) fn interleaved<V: Copy, R>(
    rounds: usize,
    variants: &[V],
    mut run: impl FnMut(V) -> Result<R>,
) -> Vec<Vec<Option<R>>> {
    let mut results: Vec<Vec<Option<R>>> = variants.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for step in 0..variants.len() {
            let which = (round + step) % variants.len();
            let result = run(variants[which]);
            if let Err(error) = &result
                && round == 0
            {
                eprintln!("  {error:#}");
            }
            results[which].push(result.ok());
        }
    }
    results
}

/// The middle value, the mean of both in the middle for an even number; `None` of nothing.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The median over the rounds of `of` ÷ `base` of the same round; `None` when a round failed.
pub(super) fn ratio<R>(
    of: &[Option<R>],
    base: &[Option<R>],
    value: impl Fn(&R) -> f64,
) -> Option<f64> {
    let rounds = of.iter().zip(base).map(|(of, base)| {
        let (of, base) = (of.as_ref()?, base.as_ref()?);
        Some(value(of) / value(base))
    });
    median(rounds.collect::<Option<Vec<f64>>>()?)
}

/// The geometric mean; `None` of nothing.
pub(super) fn geometric_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    Some((sum / values.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let rows: [(&[f64], Option<f64>); 4] = [
            (&[], None),
            (&[3.0], Some(3.0)),
            (&[5.0, 1.0, 3.0], Some(3.0)),
            (&[4.0, 1.0, 2.0, 9.0], Some(3.0)),
        ];
        for (values, expect) in rows {
            assert_eq!(median(values.iter().copied()), expect, "{values:?}");
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine is twice as slow in the second round: no matter.
        let base = [Some(1.0), Some(2.0), Some(1.0)];
        let of = [Some(1.5), Some(3.0), Some(1.5)];
        assert_eq!(ratio(&of, &base, |value| *value), Some(1.5));
        let failed = [Some(1.5), None, Some(1.5)];
        assert_eq!(ratio(&failed, &base, |value| *value), None);
    }

    #[test]
    fn a_run_is_accounted_with_its_children() {
        let script = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done";
        let used = usage(Command::new("sh").args(["-c", &format!("sh -c '{script}'; true")]));
        let used = used.expect("runs");
        assert!(
            used.cpu > 0.005 && used.elapsed > 0.005 && used.resident > 0.1,
            "{used:?}"
        );
        assert!(usage(&mut Command::new("false")).is_err());
    }

    #[test]
    fn every_variant_runs_once_a_round() {
        let results = interleaved(3, &["a", "b"], Ok);
        assert_eq!(results, [vec![Some("a"); 3], vec![Some("b"); 3]]);
    }
}
