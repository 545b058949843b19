use super::magnitude::Sparsity;
use crate::layer::MethodError;

/// Sparsity that rises along a cubic curve while a network is trained (Zhu & Gupta, "To prune, or not to prune", 2017,
/// equation 1): `s(t) = s_f + (s_i − s_f) · (1 − (t − t_0) / (t_1 − t_0))³`.
///
/// ```
/// use tersor::{CubicSchedule, Sparsity};
///
/// let schedule = CubicSchedule::new(Sparsity::new(0.0)?, Sparsity::new(0.75)?, 100, 200)?;
/// assert_eq!(schedule.at(0).get(), 0.0);
/// assert_eq!(schedule.at(150).get(), 0.65625); // 0.75 − 0.75 / 8
/// assert_eq!(schedule.at(1000).get(), 0.75);
/// # Ok::<(), tersor::MethodError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CubicSchedule {
    initial: Sparsity,
    last: Sparsity,
    begin: u64,
    end: u64,
}

impl CubicSchedule {
    /// From `initial` at step `begin` to `last` at step `end`; constant before and after.
    ///
    /// # Errors
    /// When `end` is not after `begin`.
    pub fn new(initial: Sparsity, last: Sparsity, begin: u64, end: u64) -> Result<Self, MethodError> {
        if end <= begin {
            let expected = "after the first step of the schedule";
            return Err(MethodError::Option { option: "last step", value: end as f64, expected });
        }
        Ok(Self { initial, last, begin, end })
    }

    /// The sparsity at a step.
    pub fn at(&self, step: u64) -> Sparsity {
        let done = step.clamp(self.begin, self.end) - self.begin;
        let left = 1.0 - done as f64 / (self.end - self.begin) as f64;
        let (initial, last) = (self.initial.get(), self.last.get());
        let fraction = last + (initial - last) * left.powi(3);
        // between two valid sparsities, but rounding may step out by one ulp
        Sparsity::new(fraction.clamp(initial.min(last), initial.max(last))).unwrap_or(self.last)
    }
}
