//! What has been learned, kept on the disk so that the same command can go on from there.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::student::Student;
use crate::dtype::Precision;
use crate::pipeline::PipelineError;
use crate::pipeline::resume::{Unfinished, damaged};
use crate::weight::CompressedWeight;

/// What the names of a weight's tensors end with: the learned factors and both moments.
const PARTS: [&str; 3] = [".factors", ".mean", ".square"];

/// The states of a run, of which the last one is on the disk.
pub(super) struct Snapshots<'u> {
    unfinished: &'u Unfinished,
    every: Duration,
    last: Instant,
}

impl<'u> Snapshots<'u> {
    /// Of a run that writes its state again after so long.
    pub(super) fn new(unfinished: &'u Unfinished, every: Duration) -> Self {
        Self { unfinished, every, last: Instant::now() }
    }

    /// Gives a student what it had learned before an interruption; the number of the step that is next.
    ///
    /// # Errors
    /// When what is on the disk is not what was written.
    pub(super) fn restore(&self, student: &mut Student<'_>) -> Result<usize, PipelineError> {
        let Some((step, tensors)) = self.unfinished.last_step()? else { return Ok(0) };
        for (weight, scales) in student.learned_mut() {
            let error = |error: &dyn Display| damaged(tensors.path(), format!("`{weight}`: {error}"));
            let mut state = [Vec::new(), Vec::new(), Vec::new()];
            for (part, state) in PARTS.iter().zip(&mut state) {
                *state = tensors.dense(&format!("{weight}{part}")).map_err(|e| error(&e))?;
            }
            let [_, mean, square] = &state;
            let is_moment =
                mean.iter().all(|x| x.is_finite()) && square.iter().all(|x| *x >= 0.0 && x.is_finite());
            if !is_moment {
                return Err(error(&"moments that no gradient has"));
            }
            scales.go_on_from(state).map_err(|e| error(&e))?;
        }
        Ok(step)
    }

    /// Writes what has been learned in so many steps, if the last time is long ago.
    pub(super) fn keep_now_and_then(
        &mut self,
        student: &Student<'_>,
        steps: usize,
    ) -> Result<(), PipelineError> {
        if self.last.elapsed() < self.every { Ok(()) } else { self.keep(student, steps) }
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
