use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tersor::Table;
use tersor::pipeline::{DistillationProgress, Progress};

use super::Failure;
use super::args::Common;

/// How results are printed: results on stdout, everything else on stderr.
pub(super) struct Output {
    style: Style,
    quiet: bool,
}

enum Style {
    Terminal,
    Json,
    Markdown,
    Csv,
}

impl Output {
    pub(super) fn new(common: &Common) -> Self {
        let style = match (common.json, common.markdown, common.csv) {
            (true, ..) => Style::Json,
            (_, true, _) => Style::Markdown,
            (_, _, true) => Style::Csv,
            _ => Style::Terminal,
        };
        Self { style, quiet: common.quiet }
    }

    /// Prints the value as JSON, or the table in the style asked for; `summary` follows it for readers. Someone who closes
    /// the pipe that is printed to has seen enough.
    pub(super) fn print(&self, value: &impl Serialize, table: &Table, summary: &str) -> Result<(), Failure> {
        let mut text = match self.style {
            Style::Json => serde_json::to_string_pretty(value)?,
            Style::Markdown => table.to_markdown(),
            Style::Csv => table.to_csv(),
            Style::Terminal => format!("{table}\n{summary}"),
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(format!("standard output: cannot write: {e}").into())
            }
            _ => Ok(()),
        }
    }

    /// Whether results are for readers, not for programs.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.style, Style::Terminal)
    }

    /// A remark on stderr.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            // `eprintln!` would panic when nobody reads
            writeln!(io::stderr(), "{text}").ok();
        }
    }

    /// A progress bar on stderr, if that is a terminal, which stops the run on Ctrl-C.
    pub(super) fn progress(&self) -> Result<impl FnMut(Progress<'_>) -> ControlFlow<()>, Failure> {
        let bar = self.bar("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {wide_msg}")?;
        Ok(move |progress: Progress<'_>| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            match progress.tensor {
                Some(tensor) => bar.set_message(tensor.to_owned()),
                None => bar.finish_and_clear(),
            }
            go_on(&bar)
        })
    }

    /// The same for a number of tokens.
    pub(super) fn tokens(&self, total: u64) -> Result<impl FnMut(usize) -> ControlFlow<()>, Failure> {
        let bar = self.bar("{bar:30} {human_pos}/{human_len} tokens, {per_sec}")?;
        bar.set_length(total);
        Ok(move |done: usize| {
            bar.set_position(done as u64);
            if done as u64 == total {
                bar.finish_and_clear();
            }
            go_on(&bar)
        })
    }

    /// The same for the steps of a distillation, with what they come to.
    pub(super) fn steps(
        &self,
    ) -> Result<impl FnMut(DistillationProgress) -> ControlFlow<()> + use<>, Failure> {
        let bar = self.bar("{bar:30} {pos}/{len} steps, {eta} left {wide_msg}")?;
        Ok(move |DistillationProgress { done, steps, loss }| {
            bar.set_length(steps as u64);
            bar.set_position(done as u64);
            if let Some(loss) = loss {
                bar.set_message(format!("{loss:.3} nats/token"));
            }
            if done == steps {
                bar.finish_and_clear();
            }
            go_on(&bar)
        })
    }

    fn bar(&self, template: &str) -> Result<ProgressBar, Failure> {
        static HANDLER: Once = Once::new();
        let mut set = Ok(());
        HANDLER.call_once(|| set = ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)));
        set?;
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        bar.set_style(ProgressStyle::with_template(template)?);
        Ok(bar)
    }
}

/// Whether Ctrl-C was pressed.
static STOP: AtomicBool = AtomicBool::new(false);

/// Ends what a bar shows once Ctrl-C was pressed.
fn go_on(bar: &ProgressBar) -> ControlFlow<()> {
    if STOP.load(Ordering::Relaxed) {
        bar.finish_and_clear();
        return ControlFlow::Break(());
    }
    ControlFlow::Continue(())
}

/// `1234567` → `1.23 MB`.
pub(super) fn human(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}
