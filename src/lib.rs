#![doc = include_str!("../README.md")]

pub mod calibrate;
#[cfg(feature = "candle")]
pub mod candle;
pub mod checkpoint;
pub mod distill;
mod dtype;
mod error;
pub mod evaluate;
pub mod factorize;
mod file;
#[allow(unsafe_code)]
pub mod kernels;
mod layer;
pub mod model;
pub mod pipeline;
pub mod prune;
pub mod quantize;
pub mod recipe;
pub mod report;
pub mod transform;
pub mod weight;

pub use calibrate::{CalibrateError, Cut, OwnText, Samples};
pub use checkpoint::{
    Checkpoint, CheckpointError, Entry, Stored, StoredTensor, TensorClass, coded_tensor, load_masks,
    save_masks, save_weights, stored_tensors,
};
pub use dtype::{DType, FloatType, Precision};
pub use error::{NonFinite, one_line};
pub use evaluate::{
    Better, Classification, EvaluateError, Generation, ImageSet, Latency, Perplexity, Score, Similarity,
    Task, WeightErrors, Windows,
};
pub use factorize::{Corrected, FactorType, Factorize, Rank};
pub use file::open_regular;
pub use kernels::level::{CpuLevel, CpuLevelError};
pub use kernels::matmul::{ActivationCodes, Epilogue};
pub use layer::{Alternative, Compressed, Layer, LayerStats, Method, MethodError, Needs, Outcome};
pub use model::{
    Cache, Classifier, Decoder, Encoder, Execution, GenerateOptions, LanguageModel, ModelError, Network,
    PlainWeights, Sampling, SentenceEncoder, Sequential, Tap, UnitKind,
};
#[cfg(feature = "text")]
pub use model::{Tokenizer, TokenizerError};
pub use pipeline::{
    Amount, BlockChoice, BlockInputs, Calibration, PipelineError, Plan, Run, Shrink, ShrinkPlan, Shrunk,
    VerifyOptions, verify,
};
pub use prune::{
    Allocation, Axis, Consumer, CubicSchedule, Importance, Magnitude, MagnitudeThreshold, Obc, Pruning,
    Repaired, Sensitivity, SparseGpt, Sparsity, SparsityPattern, Structured, Wanda, by_sensitivity,
    erdos_renyi_kernel, n_of_m_mask,
};
pub use quantize::{
    ActivationObserver, Affine, AutoRound, AwqOptions, AwqScales, ClippedRounding, CodeType, Damping,
    FloatCast, Gptq, Histogram, Hqq, HqqOptions, KMeans, Observer, Overflow, RoundToNearest, SmoothScales,
    Smoothing, ValueImportance, awq_scales, bias_correction, hqq_zero_point, smooth_scales,
};
pub use recipe::{InputQuantization, OutputFormat, Pattern, PresetOptions, Recipe, RecipeError, Step};
pub use report::{Comparison, Keep, Pricing, Table};
pub use weight::{
    Activations, Bits, CodebookBits, Codebooks, Coding, CompressedWeight, DenseValues, Form, Granularity,
    InputForm, InputScales, LayoutKind, LowRank, LowRankForm, Mask, NofM, PackedWeight, QuantizedInput,
    Scales, WeightError,
};
