//! Logs: text for people or JSON for machines, on standard error.

use std::fmt::{self, Write};
use std::io::IsTerminal;
use tollkeeper_config::settings::{Log, LogFormat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

/// Starts logging as configured. The first call counts.
///
/// # Errors
/// The filter cannot be understood; the text says what of it.
pub(crate) fn init(log: &Log) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(&log.filter).map_err(|error| format!("`log.filter` cannot be understood: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => {
            let builder = builder.with_target(false).with_ansi(std::io::stderr().is_terminal());
            builder.fmt_fields(text_fields()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| format!("logging could not be started: {error}"))
}

/// The fields of a line of text. Without the colours of the default, whose bookkeeping took nearly half of a line's instructions.
fn text_fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    let fields = debug_fn(|line: &mut Writer<'_>, field, value| match field.name() {
        "message" => write!(Escaped { line, keeps: '\n' }, "{value:?}"),
        name => {
            write!(line, "{name}=")?;
            write!(Escaped { line, keeps: ' ' }, "{value:?}")
        }
    });
    fields.delimited(" ")
}

/// Writes control characters as escapes, so that nothing a client or a provider says can forge a line or steer a terminal.
struct Escaped<'a, 'w> {
    line: &'a mut Writer<'w>,
    /// Written as it is: what this program itself says may have several lines.
    keeps: char,
}

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, control)) = rest.char_indices().find(|(_, c)| c.is_control() && *c != self.keeps) {
            self.line.write_str(&rest[..at])?;
            write!(self.line, "{}", control.escape_default())?;
            rest = &rest[at + control.len_utf8()..];
        }
        self.line.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_others_say_cannot_forge_a_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let builder = tracing_subscriber::fmt().with_writer(move || writer.clone()).without_time().with_target(false);
        tracing::subscriber::with_default(builder.with_ansi(false).fmt_fields(text_fields()).finish(), || {
            let model = "up/\u{1b}[31m\nINFO request outcome=\"done\"";
            tracing::info!(backend = %model, alias = model, tokens = 3, "one\ntwo\u{7}");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let expected = [
            " INFO one\ntwo\\u{7} backend=up/\\u{1b}[31m\\nINFO request outcome=\"done\" ",
            "alias=\"up/\\u{1b}[31m\\nINFO request outcome=\\\"done\\\"\" tokens=3\n",
        ];
        assert_eq!(text, expected.concat());
    }
}
