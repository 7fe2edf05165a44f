//! *How does the command write?* — text or JSON, in colour or not.

use clap::ValueEnum;
use pointee_inspect::text::Style;
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// Form of what is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: the schema is versioned.
    Json,
}

/// Rows of a table unless told otherwise.
pub(crate) const ROWS: usize = 20;

/// Options of every subcommand that lists something.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Listing {
    /// Write text or JSON.
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) format: Format,
    /// Rows of each table in text.
    #[arg(long, value_name = "N", default_value_t = ROWS)]
    pub(crate) limit: usize,
    /// All rows of each table in text.
    #[arg(long, conflicts_with = "limit")]
    pub(crate) all: bool,
}

impl Listing {
    /// The style for a stream that is a terminal or not. `NO_COLOR` is respected (no-color.org).
    pub(crate) fn style(&self, is_terminal: bool) -> Style {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Style {
            colour: is_terminal && !refused && !dumb,
            at_peak: false,
            rows: if self.all { usize::MAX } else { self.limit },
        }
    }

    /// The style for standard output.
    pub(crate) fn style_of_stdout(&self) -> Style {
        self.style(std::io::stdout().is_terminal())
    }
}

/// Writes to standard output. A reader that has gone away (`| head`) is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// As JSON, with a newline at its end.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text)
}
