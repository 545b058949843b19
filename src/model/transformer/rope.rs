use std::f64::consts::PI;

use super::keys::Keys;
use crate::kernels::level::Isa;
use crate::kernels::rotary;
use crate::model::ModelError;

/// Base of the wavelengths when the configuration names none.
const DEFAULT_THETA: f64 = 10_000.0;

/// Angles of rotary position embeddings (Su et al., 2021).
#[derive(Debug, Clone)]
pub(super) struct Rope {
    /// Angle per position of each pair of values.
    frequencies: Vec<f32>,
    /// What cosine and sine are multiplied by.
    attention_factor: f32,
}

/// Cosine and sine of some positions' angles.
pub(super) struct Angles {
    half: usize,
    /// `[position][half a head's values]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`.
    ///
    /// Scalings: `linear`; `llama3` (Llama 3.1); `yarn` (Peng et al., 2023); `dynamic`, which changes nothing up to
    /// `max_position_embeddings`, and longer sequences are refused.
    pub(super) fn of(keys: Keys<'_>, head_dim: usize) -> Result<Self, ModelError> {
        let parameters = match keys.object("rope_parameters", "rope_parameters.")? {
            Some(parameters) => Some(parameters),
            None => keys.object("rope_scaling", "rope_scaling.")?,
        };
        let theta = match parameters.map(|p| p.optional_positive("rope_theta")).transpose()?.flatten() {
            Some(theta) => theta,
            None => keys.optional_positive("rope_theta")?.unwrap_or(DEFAULT_THETA),
        };
        let partial = |keys: Keys<'_>| keys.optional_positive("partial_rotary_factor");
        let partial = [parameters.map(partial).transpose()?.flatten(), partial(keys)?];
        if partial.into_iter().flatten().any(|factor| factor != 1.0) {
            return Err(keys.error("`partial_rotary_factor` is not 1: tersor rotates whole heads only"));
        }
        let pairs = head_dim / 2;
        // in f32, as the reference does
        let frequencies = || {
            (0..pairs)
                .map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32))
                .collect::<Vec<_>>()
        };
        let Some(scaling) = parameters else {
            return Ok(Self { frequencies: frequencies(), attention_factor: 1.0 });
        };
        let old = scaling.string_or("type", "default")?;
        let kind = scaling.string_or("rope_type", old)?;
        let original = || match scaling.optional_positive("original_max_position_embeddings")? {
            Some(original) => Ok(original),
            None => keys.positive("max_position_embeddings"),
        };
        match kind {
            "default" | "dynamic" => Ok(Self { frequencies: frequencies(), attention_factor: 1.0 }),
            "linear" => {
                let factor = scaling.positive("factor")? as f32;
                let frequencies = frequencies().into_iter().map(|f| f / factor).collect();
                Ok(Self { frequencies, attention_factor: 1.0 })
            }
            "llama3" => {
                let factor = scaling.positive("factor")?;
                let low = scaling.positive("low_freq_factor")?;
                let high = scaling.positive("high_freq_factor")?;
                let original = original()?;
                let scaled = |frequency: f32| {
                    let frequency = f64::from(frequency);
                    let turns = original * frequency / (2.0 * PI);
                    let smooth = (turns - low) / (high - low);
                    let scaled = if turns < low {
                        frequency / factor
                    } else if turns > high {
                        frequency
                    } else {
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    };
                    scaled as f32
                };
                Ok(Self { frequencies: frequencies().into_iter().map(scaled).collect(), attention_factor: 1.0 })
            }
            "yarn" => Self::yarn(keys, scaling, theta, head_dim, original()?),
            other => Err(keys.error(format!(
                "rotary embeddings are scaled by `{other}`; tersor runs default, linear, dynamic, llama3 and yarn"
            ))),
        }
    }

    fn yarn(
        keys: Keys<'_>,
        scaling: Keys<'_>,
        theta: f64,
        head_dim: usize,
        original: f64,
    ) -> Result<Self, ModelError> {
        let dim = head_dim as f64;
        let factor = match scaling.optional_positive("factor")? {
            Some(factor) => factor,
            None => keys.positive("max_position_embeddings")? / original,
        };
        let magnitude = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let attention_factor = match scaling.optional_positive("attention_factor")? {
            Some(factor) => factor,
            None => {
                match (scaling.optional_positive("mscale")?, scaling.optional_positive("mscale_all_dim")?) {
                    (Some(one), Some(all)) => magnitude(one) / magnitude(all),
                    _ => magnitude(1.0),
                }
            }
        };
        let beta_fast = scaling.optional_positive("beta_fast")?.unwrap_or(32.0);
        let beta_slow = scaling.optional_positive("beta_slow")?.unwrap_or(1.0);
        // the dimension whose wavelength turns so often within the original context
        let dimension = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
        if scaling.flag_or("truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        let width = if low == high { 0.001 } else { high - low };
        let frequency = |i: usize| {
            let wavelength = theta.powf((2 * i) as f64 / dim);
            let interpolated = ((i as f64 - low) / width).clamp(0.0, 1.0);
            (interpolated / (factor * wavelength) + (1.0 - interpolated) / wavelength) as f32
        };
        let frequencies = (0..head_dim / 2).map(frequency).collect();
        Ok(Self { frequencies, attention_factor: attention_factor as f32 })
    }

    /// The angles of some positions.
    pub(super) fn angles(&self, positions: impl ExactSizeIterator<Item = usize>) -> Angles {
        let half = self.frequencies.len();
        let (mut cos, mut sin) =
            (Vec::with_capacity(positions.len() * half), Vec::with_capacity(positions.len() * half));
        for position in positions {
            for frequency in &self.frequencies {
                // the product in f32, as the reference has it, and its functions exactly
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32 * self.attention_factor);
                sin.push(s as f32 * self.attention_factor);
            }
        }
        Angles { half, cos, sin }
    }
}

impl Angles {
    /// The transposed rotations, which take gradients back.
    pub(super) fn transposed(&self) -> Self {
        Self { half: self.half, cos: self.cos.clone(), sin: self.sin.iter().map(|sin| -sin).collect() }
    }

    /// Rotates all heads of the positions' tokens.
    pub(super) fn rotate(&self, heads: &mut [f32], width: usize) {
        if self.half == 0 {
            return;
        }
        let isa = Isa::current();
        let angles = self.cos.chunks_exact(self.half).zip(self.sin.chunks_exact(self.half));
        for (token, (cos, sin)) in heads.chunks_exact_mut(width).zip(angles) {
            rotary::rotate(isa, token, cos, sin);
        }
    }
}
