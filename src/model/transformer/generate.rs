use std::ops::ControlFlow;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::decoder::Decoder;
use crate::model::ModelError;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Sampling {
    /// The likeliest; the first of equal ones.
    #[default]
    Greedy,
    /// At random, from the likeliest tokens that together have the probability `top_p` (Holtzman et al., 2020).
    Nucleus {
        /// What logits are divided by; above 0. Below 1 makes likely tokens likelier.
        temperature: f64,
        /// In (0, 1]; 1 allows every token.
        top_p: f64,
        /// The same seed gives the same tokens.
        seed: u64,
    },
}

/// How a [`Decoder`] goes on with a text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerateOptions {
    /// Most tokens to add. The model's own limit ends a text, too.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end the text; they are not given.
    pub stop: Vec<u32>,
}

impl Decoder {
    /// Goes on with a text, token by token. Each token is given to `each`, which may end the text.
    ///
    /// # Errors
    /// When the prompt is empty or too long, or has a token beyond the vocabulary; when sampling is asked for that makes no
    /// sense, or the network gives NaN or an infinity.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        let mut sampler = Sampler::new(options.sampling, 0)?;
        let mut cache = self.cache();
        let mut logits = self.extend(&mut cache, prompt)?;
        for left in (0..options.max_new_tokens).rev() {
            let token = sampler.choose(&logits, cache.len())?;
            if options.stop.contains(&token) || each(token).is_break() {
                break;
            }
            if left == 0 || cache.len() >= crate::model::LanguageModel::max_tokens(self) {
                break;
            }
            logits = self.extend(&mut cache, &[token])?;
        }
        Ok(())
    }
}

/// Chooses tokens from logits.
pub(crate) enum Sampler {
    Greedy,
    Nucleus { temperature: f64, top_p: f64, random: Box<ChaCha8Rng> },
}

impl Sampler {
    /// Texts of the same seed, but another number, have nothing to do with each other.
    pub(crate) fn new(sampling: Sampling, text: u64) -> Result<Self, ModelError> {
        match sampling {
            Sampling::Greedy => Ok(Self::Greedy),
            Sampling::Nucleus { temperature, top_p, seed } => {
                let sound = temperature > 0.0 && temperature.is_finite() && top_p > 0.0 && top_p <= 1.0;
                if !sound {
                    let reason = format!(
                        "a temperature of {temperature} and a top-p of {top_p}: the first must be above 0, the second \
                         above 0 and at most 1"
                    );
                    return Err(ModelError::Tokens { reason });
                }
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(text);
                Ok(Self::Nucleus { temperature, top_p, random: Box::new(random) })
            }
        }
    }

    /// # Errors
    /// When a logit is not finite: then `sample` is named.
    pub(crate) fn choose(&mut self, logits: &[f32], sample: usize) -> Result<u32, ModelError> {
        if let Some((class, value)) = logits.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(ModelError::NonFinite { sample, class, value: *value });
        }
        let best = |a: usize, b: usize| if logits[b] > logits[a] { b } else { a };
        let likeliest = (0..logits.len()).fold(0, best);
        let Self::Nucleus { temperature, top_p, random } = self else { return Ok(likeliest as u32) };
        let max = f64::from(logits[likeliest]);
        let mut tokens: Vec<(u32, f64)> = (0u32..)
            .zip(logits.iter())
            .map(|(token, logit)| (token, ((f64::from(*logit) - max) / *temperature).exp()))
            .collect();
        if *top_p < 1.0 {
            // the likeliest first; equal ones in their order
            tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
        }
        let all: f64 = tokens.iter().map(|(_, p)| p).sum();
        let mut kept = 0.0;
        let mut count = 0;
        while count < tokens.len() && (count == 0 || kept < *top_p * all) {
            kept += tokens[count].1;
            count += 1;
        }
        let mut left = random.random::<f64>() * kept;
        for (token, p) in &tokens[..count] {
            left -= p;
            if left < 0.0 {
                return Ok(*token);
            }
        }
        Ok(tokens[count - 1].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        const ROUNDS: usize = 20_000;
        let mut sampler = Sampler::new(sampling, 0).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..ROUNDS {
            counts[sampler.choose(logits, 0).unwrap() as usize] += 1.0 / ROUNDS as f64;
        }
        counts
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let logits = [0.2f32, 0.5, 0.3].map(f32::ln);
        let close = |shares: &[f64], expected: &[f64]| {
            assert!(
                shares.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.015),
                "{shares:?} {expected:?}"
            );
        };
        let nucleus = |temperature, top_p| Sampling::Nucleus { temperature, top_p, seed: 7 };
        close(&shares(nucleus(1.0, 1.0), &logits), &[0.2, 0.5, 0.3]);
        // squares of the probabilities
        close(&shares(nucleus(0.5, 1.0), &logits), &[0.04 / 0.38, 0.25 / 0.38, 0.09 / 0.38]);
        // 0.5 + 0.3 reach 0.7, and 0.5 reaches 0.5
        close(&shares(nucleus(1.0, 0.7), &logits), &[0.0, 0.625, 0.375]);
        close(&shares(nucleus(1.0, 0.499), &logits), &[0.0, 1.0, 0.0]);
        close(&shares(Sampling::Greedy, &logits), &[0.0, 1.0, 0.0]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (temperature, top_p) in
            [(0.0, 0.5), (-1.0, 0.5), (f64::NAN, 0.5), (1.0, 0.0), (1.0, 1.1), (1.0, f64::NAN)]
        {
            let error = Sampler::new(Sampling::Nucleus { temperature, top_p, seed: 0 }, 0).err().unwrap();
            assert!(error.to_string().contains("must be above 0"), "{error}");
        }
        let mut sampler = Sampler::new(Sampling::Greedy, 0).unwrap();
        assert_eq!(sampler.choose(&[1.0, 3.0, 3.0], 0).unwrap(), 1);
        for (value, says) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            let error = sampler.choose(&[1.0, value], 5).unwrap_err().to_string();
            assert!(error.contains(&format!("gives {says} for sample 5, class 1")), "{error}");
        }
    }
}
