//! Real models, from the folder that the environment variable `TERSOR_ZOO` names; `SmolLM2` from that of `TERSOR_SMOLLM2`.
//!
//! Without its variable a test is reported as ignored. Networks are held against what transformers computed with them,
//! in `fixtures/golden/zoo`, whose README has the protocols.

#[path = "../common/mod.rs"]
mod common;
mod compressed;
mod files;
mod inputs;
mod networks;
mod scores;
mod smollm2;
mod structured;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use libtest_mimic::{Arguments, Failed, Trial};
use tersor::{CpuLevel, OutputFormat, PresetOptions};

/// Compressed with and without an output format that is read by others.
const PRESETS: [&str; 10] =
    ["fp16", "bf16", "fp8", "int8", "int8-asym", "int4", "int3-asym", "2:4+int8", "50%", "90%-global+int4"];

/// Adds a test of this name, which is given the zoo and what else it is about.
type Add<'a> = dyn FnMut(&str, fn(&Path, &'static str) -> Result<(), Failed>, &'static str) + 'a;

fn main() {
    let mut trials = Vec::new();
    let mut from = |variable: &str, add_all: &[fn(&mut Add<'_>)]| {
        let folder = std::env::var_os(variable).map(PathBuf::from);
        for add in add_all {
            add(&mut |name, run, of| {
                let folder = folder.clone();
                let ignored = folder.is_none();
                let trial = Trial::test(name, move || run(&folder.unwrap_or_default(), of));
                trials.push(trial.with_ignored_flag(ignored));
            });
        }
    };
    from(
        "TERSOR_ZOO",
        &[files::add, networks::add, scores::add, compressed::add, inputs::add, structured::add],
    );
    from("TERSOR_SMOLLM2", &[smollm2::add]);
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn go(_: tersor::pipeline::Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn options() -> PresetOptions {
    // most of these models have rows that no common group size divides
    PresetOptions { format: Some(OutputFormat::Tersor), ..PresetOptions::default() }
}

/// Held by whoever chooses the instruction level, which is one for all tests, or counts on it not to change.
static LEVEL: RwLock<()> = RwLock::new(());

/// Nobody else changes the instruction level, or counts on it; afterwards it is the highest again.
struct LevelIsMine(#[allow(dead_code)] RwLockWriteGuard<'static, ()>);

impl Drop for LevelIsMine {
    fn drop(&mut self) {
        CpuLevel::detected().set_current().ok();
    }
}

fn level_is_mine() -> LevelIsMine {
    LevelIsMine(LEVEL.write().unwrap_or_else(PoisonError::into_inner))
}

/// Nobody changes the instruction level meanwhile.
fn level_stays() -> RwLockReadGuard<'static, ()> {
    LEVEL.read().unwrap_or_else(PoisonError::into_inner)
}

fn check(holds: bool, message: impl Fn() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(message().into()) }
}

/// That a value is another, but for a relative error.
fn check_near(what: &str, value: f64, expected: f64, relative: f64) -> Result<(), Failed> {
    check((value / expected - 1.0).abs() <= relative, || format!("{what}: {value}, not {expected}"))
}
