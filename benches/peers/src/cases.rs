//! What is measured: every row of the table, its amount of work, and the least time that the machine allows for it.

use serde::{Deserialize, Serialize};

use crate::limits::Limits;

/// Side of the square matrix of most cases: 16.8 million values, 64 MiB in f32.
const SIDE: usize = 4096;

/// Bytes of weights that a cold product rotates over: many times the largest cache.
pub(crate) const COLD_BYTES: usize = 256 << 20;

/// One row of the table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Case {
    #[serde(flatten)]
    pub(crate) operation: Operation,
    /// Rows of the weight: output features.
    pub(crate) rows: usize,
    /// Columns of the weight: input features.
    pub(crate) cols: usize,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "kebab-case")]
pub(crate) enum Operation {
    /// f32 → packed symmetric integer codes and their scales; no group: one scale a row.
    Quantize { bits: u8, group: Option<usize> },
    /// The same, with the range of every group chosen among 100 by its squared error.
    QuantizeMse { bits: u8, group: Option<usize> },
    /// One float type to another; one of the two is f32.
    Cast { from: Float, to: Float },
    /// `y = x · Wᵀ`, f32 in and out, int8 weights with one scale a row, activations quantized on the fly.
    Int8Linear { batch: usize, cold: bool },
    /// The same with int4 weights in groups of 128 columns, and activations in 8 bits or, if `float`, as they are.
    Int4Linear { batch: usize, cold: bool, float: bool },
    /// The same in f32 throughout.
    F32Linear { batch: usize },
    /// The int8 product at batch 1 with pruned weights.
    SparseLinear { pattern: Pattern },
    /// The exact threshold that drops half of all magnitudes of several tensors, and the tensors pruned in place.
    Prune { tensors: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Float {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pattern {
    #[serde(rename = "90 %")]
    NinetyPercent,
    #[serde(rename = "2:4")]
    TwoOfFour,
}

/// Every case that a worker measures, in the order of the table.
pub(crate) fn all() -> Vec<Case> {
    let square = |operation| Case { operation, rows: SIDE, cols: SIDE };
    let mut cases: Vec<Case> = [(8, None), (8, Some(32)), (8, Some(128)), (4, Some(128))]
        .map(|(bits, group)| square(Operation::Quantize { bits, group }))
        .into();
    cases.push(square(Operation::QuantizeMse { bits: 4, group: Some(128) }));
    cases.extend(
        [
            (Float::F32, Float::F16),
            (Float::F16, Float::F32),
            (Float::F32, Float::Bf16),
            (Float::Bf16, Float::F32),
        ]
        .map(|(from, to)| square(Operation::Cast { from, to })),
    );
    cases.extend([1, 8, 32, 128, 512].map(|batch| square(Operation::Int8Linear { batch, cold: false })));
    cases.push(square(Operation::Int8Linear { batch: 1, cold: true }));
    for (cols, rows, batches) in [(768, 3072, [1, 32, 128].as_slice()), (384, 1536, &[1, 32])] {
        cases.extend(batches.iter().map(|batch| {
            let operation = Operation::Int8Linear { batch: *batch, cold: false };
            Case { operation, rows, cols }
        }));
    }
    cases.extend(
        [(1, false, false), (1, true, false), (128, false, false), (1, false, true), (128, false, true)]
            .map(|(batch, cold, float)| square(Operation::Int4Linear { batch, cold, float })),
    );
    cases.extend([1, 32, 512].map(|batch| square(Operation::F32Linear { batch })));
    cases.extend(
        [Pattern::NinetyPercent, Pattern::TwoOfFour]
            .map(|pattern| square(Operation::SparseLinear { pattern })),
    );
    cases.push(Case { operation: Operation::Prune { tensors: 24 }, rows: 2048, cols: 2048 });
    cases
}

impl Case {
    /// Values of the weight.
    pub(crate) fn values(&self) -> usize {
        self.rows * self.cols
    }

    /// Whoever is further than this from the exact f32 result (norm of the difference over norm of the result) computes
    /// something else, and is not timed.
    pub(crate) fn tolerance(&self) -> f64 {
        match self.operation {
            // absmax scales of normal weights: 0.8 % for a row, less for groups
            Operation::Quantize { bits: 8, .. } => 0.015,
            // 11 % for groups of 128
            Operation::Quantize { .. } | Operation::QuantizeMse { .. } => 0.15,
            Operation::Cast { from: Float::Bf16, .. } | Operation::Cast { to: Float::Bf16, .. } => 4e-3,
            Operation::Cast { .. } => 5e-4,
            // weights 0.8 %, activations 1.2 % where they share one scale
            Operation::Int8Linear { .. } | Operation::SparseLinear { .. } => 0.03,
            // 15 % where there is one scale a row
            Operation::Int4Linear { .. } => 0.2,
            Operation::F32Linear { .. } => 1e-5,
            Operation::Prune { .. } => 0.0,
        }
    }

    /// Runs before anything is timed: where there are many copies of a weight, so many that each has been used.
    pub(crate) fn first_runs(&self) -> usize {
        match self.operation {
            Operation::Int8Linear { cold: true, .. } | Operation::Int4Linear { cold: true, .. } => 64,
            _ => 1,
        }
    }

    /// Unit of the table's figures.
    pub(crate) fn unit(&self) -> &'static str {
        match self.operation {
            Operation::Quantize { .. } | Operation::QuantizeMse { .. } | Operation::Cast { .. } => {
                "GB/s of f32"
            }
            Operation::F32Linear { .. } => "GFLOP/s",
            Operation::Int8Linear { .. } | Operation::Int4Linear { .. } | Operation::SparseLinear { .. } => {
                "GOP/s"
            }
            Operation::Prune { .. } => "Mvalues/s",
        }
    }

    /// Work of one run, so that `work / seconds` is in [`unit`](Self::unit).
    pub(crate) fn work(&self) -> f64 {
        let values = self.values() as f64;
        match self.operation {
            Operation::Quantize { .. } | Operation::QuantizeMse { .. } | Operation::Cast { .. } => {
                4.0 * values / 1e9
            }
            Operation::Int8Linear { batch, .. }
            | Operation::Int4Linear { batch, .. }
            | Operation::F32Linear { batch } => 2.0 * values * batch as f64 / 1e9,
            Operation::SparseLinear { .. } => 2.0 * values / 1e9,
            Operation::Prune { tensors } => values * tensors as f64 / 1e6,
        }
    }

    /// The least seconds that the machine needs: the slower of moving the bytes and doing the arithmetic. `weight` is the
    /// bytes of a product's weight, as tersor holds it. `None` where there is no plain bound, or the limit cannot be measured
    /// here.
    pub(crate) fn floor(&self, limits: &mut Limits, weight: usize) -> Option<f64> {
        let bytes = self.values() * 4;
        match self.operation {
            // codes, and one scale of four bytes for every group
            Operation::Quantize { bits: 8, group: Some(32) } => limits.stream::<32, 9>(bytes),
            Operation::Quantize { bits: 8, group: Some(_) } => limits.stream::<128, 33>(bytes),
            Operation::Quantize { bits: 8, group: None } => limits.stream::<4, 1>(bytes),
            Operation::Quantize { .. } => limits.stream::<128, 17>(bytes),
            Operation::QuantizeMse { .. } => None,
            Operation::Cast { from: Float::F32, .. } => limits.stream::<2, 1>(bytes),
            Operation::Cast { .. } => limits.stream::<1, 2>(bytes / 2),
            Operation::Int4Linear { batch, cold, float: true } => {
                product(limits.read(weight, cold), limits.f32(self.ops(batch)))
            }
            Operation::Int8Linear { batch, cold } | Operation::Int4Linear { batch, cold, float: false } => {
                product(limits.read(weight, cold), limits.int8(self.ops(batch)))
            }
            Operation::F32Linear { batch } => {
                product(limits.read(weight, false), limits.f32(self.ops(batch)))
            }
            Operation::SparseLinear { .. } => limits.read(weight, false),
            // one pass to find the threshold, one to zero what is dropped
            Operation::Prune { tensors } => {
                let all = bytes * tensors;
                Some(limits.read(all, true)? + limits.update(all)?)
            }
        }
    }

    fn ops(&self, batch: usize) -> f64 {
        2.0 * self.values() as f64 * batch as f64
    }
}

fn product(read: Option<f64>, compute: Option<f64>) -> Option<f64> {
    Some(read?.max(compute?))
}
