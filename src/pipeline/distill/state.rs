//! What has been learned, kept on the disk so that the same command can go on from there.

use std::time::{Duration, Instant};

use super::student::Student;
use crate::dtype::Precision;
use crate::pipeline::PipelineError;
use crate::pipeline::resume::Unfinished;
use crate::weight::CompressedWeight;

/// Time after which it is written again; writing waits for the disk.
const EVERY: Duration = Duration::from_secs(20);

/// What the names of a weight's tensors end with: the learned factors and both moments.
const PARTS: [&str; 3] = [".factors", ".mean", ".square"];

/// The states of a run, of which the last one is on the disk.
pub(super) struct Snapshots<'u> {
    unfinished: &'u Unfinished,
    last: Instant,
}

impl<'u> Snapshots<'u> {
    pub(super) fn new(unfinished: &'u Unfinished) -> Self {
        Self { unfinished, last: Instant::now() }
    }

    /// Gives a student what it had learned before an interruption; the number of the step that is next.
    pub(super) fn restore(&self, student: &mut Student<'_>) -> Result<usize, PipelineError> {
        let Some((step, tensors)) = self.unfinished.last_step()? else { return Ok(0) };
        let path = tensors.path().to_path_buf();
        for (weight, scales) in student.learned_mut() {
            let mut state = [Vec::new(), Vec::new(), Vec::new()];
            for (part, state) in PARTS.iter().zip(&mut state) {
                *state = tensors.dense(&format!("{weight}{part}"))?;
            }
            scales.go_on_from(state).map_err(PipelineError::weight(&path, weight))?;
        }
        Ok(step)
    }

    /// Writes what has been learned in so many steps, if the last time is long ago.
    pub(super) fn keep_now_and_then(
        &mut self,
        student: &Student<'_>,
        steps: usize,
    ) -> Result<(), PipelineError> {
        if self.last.elapsed() < EVERY { Ok(()) } else { self.keep(student, steps) }
    }

    /// Writes what has been learned in so many steps.
    pub(super) fn keep(&mut self, student: &Student<'_>, steps: usize) -> Result<(), PipelineError> {
        let mut tensors = Vec::new();
        for (weight, scales) in student.learned() {
            for (part, values) in PARTS.iter().zip(scales.state()) {
                let tensor = CompressedWeight::from_f32(&[values.len()], Precision::F32, values);
                let error = PipelineError::weight(self.unfinished.folder(), weight);
                tensors.push((format!("{weight}{part}"), tensor.map_err(error)?));
            }
        }
        self.unfinished.write_step(steps, &tensors)?;
        self.last = Instant::now();
        Ok(())
    }
}
