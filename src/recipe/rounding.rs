use std::sync::Arc;

use super::{RecipeError, Step};
use crate::layer::Method;
use crate::quantize::{AutoRound, ClippedRounding, CodeType, Damping, Gptq, Hqq, Observer, RoundToNearest};
use crate::weight::{Bits, Granularity};

/// How integer codes are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub enum Rounding {
    /// The nearest.
    #[default]
    Nearest,
    /// One column after the other, each making up for the errors before it (GPTQ).
    Gptq {
        /// Whether columns with large activations come first; groups keep the columns they have.
        act_order: bool,
        /// What is added to the Hessian's diagonal.
        damping: Damping,
    },
    /// The nearest, in ranges clipped with regard to the activations (AWQ's second part).
    Clipped,
    /// The nearest, around zero points fitted to the weights (HQQ).
    HalfQuadratic,
    /// Up or down as learned by signed gradients (AutoRound).
    Learned {
        /// Steps; 200 by default.
        iterations: Option<usize>,
    },
}

impl Rounding {
    /// Names that [`from_name`](Self::from_name) knows, and what they are.
    pub const NAMES: [(&'static str, &'static str); 6] = [
        ("nearest", "round to nearest"),
        ("gptq", "GPTQ: every column makes up for the errors of those before it"),
        ("gptq-act-order", "the same, columns with large activations first"),
        ("clip", "AWQ's clipping; with the transform `awq` it is all of AWQ"),
        ("hqq", "HQQ: zero points fitted to the weights; needs no calibration"),
        ("autoround", "AutoRound: up or down as learned by signed gradients"),
    ];

    /// The rounding of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_name(name: &str) -> Result<Self, RecipeError> {
        Ok(match name {
            "nearest" => Self::Nearest,
            "gptq" => Self::Gptq { act_order: false, damping: Damping::default() },
            "gptq-act-order" => Self::Gptq { act_order: true, damping: Damping::default() },
            "clip" => Self::Clipped,
            "hqq" => Self::HalfQuadratic,
            "autoround" => Self::Learned { iterations: None },
            _ => return Err(RecipeError::unknown_name("method", name, &Self::NAMES.map(|(name, _)| name))),
        })
    }

    /// The same with another damping; `None` if it has none.
    #[must_use]
    pub fn damped(self, damping: Damping) -> Option<Self> {
        match self {
            Self::Gptq { act_order, .. } => Some(Self::Gptq { act_order, damping }),
            Self::Nearest | Self::Clipped | Self::HalfQuadratic | Self::Learned { .. } => None,
        }
    }

    /// A step that quantizes like this.
    ///
    /// # Errors
    /// When the method does not do such codes, or has no observer.
    pub(super) fn step(
        self,
        place: &str,
        codes: CodeType,
        granularity: Granularity,
        observer: Observer,
    ) -> Result<Step, RecipeError> {
        if self == Self::Nearest {
            return Ok(Step::quantize(
                RoundToNearest::codes(codes).granularity(granularity).observer(observer),
            ));
        }
        let CodeType::Int { bits, symmetric } = codes else {
            return Err(RecipeError::value(place, format!("{self} makes integer codes only")));
        };
        if observer != Observer::MinMax && !matches!(self, Self::Gptq { .. }) {
            return Err(RecipeError::value(
                place,
                format!("{self} finds its ranges itself; leave out the observer"),
            ));
        }
        let method = self.method(bits, symmetric, granularity, observer);
        Ok(Step::of(method))
    }

    fn method(
        self,
        bits: Bits,
        symmetric: bool,
        granularity: Granularity,
        observer: Observer,
    ) -> Arc<dyn Method> {
        match self {
            Self::Nearest => {
                Arc::new(RoundToNearest::codes(CodeType::Int { bits, symmetric }).granularity(granularity))
            }
            Self::Gptq { act_order, damping } => {
                let gptq = Gptq::codes(CodeType::Int { bits, symmetric })
                    .granularity(granularity)
                    .observer(observer);
                Arc::new(gptq.act_order(act_order).damping(damping))
            }
            Self::Clipped => {
                Arc::new(ClippedRounding::int(bits).symmetric(symmetric).granularity(granularity))
            }
            Self::HalfQuadratic => Arc::new(Hqq::int(bits).symmetric(symmetric).granularity(granularity)),
            Self::Learned { iterations } => {
                let learned = AutoRound::int(bits).symmetric(symmetric).granularity(granularity);
                Arc::new(iterations.map_or(learned, |n| learned.iterations(n)))
            }
        }
    }
}

impl Observer {
    /// Names that [`from_name`](Self::from_name) knows, and what they are.
    pub const NAMES: [(&'static str, &'static str); 5] = [
        ("min_max", "from the smallest to the largest value"),
        ("abs_max", "as far below zero as above"),
        ("percentile=P", "from the (100 − P)th to the Pth percentile, such as percentile=99.9"),
        ("mse", "the range with the least squared error of the weights"),
        ("entropy", "the threshold with the least Kullback-Leibler divergence"),
    ];

    /// The observer of this name.
    ///
    /// # Errors
    /// When there is none, or the percentile is none.
    pub fn from_name(name: &str) -> Result<Self, RecipeError> {
        let observer = match name.split_once('=') {
            None if name == "min_max" => Self::MinMax,
            None if name == "abs_max" => Self::AbsMax,
            None if name == "mse" => Self::Mse,
            None if name == "entropy" => Self::Entropy,
            Some(("percentile", text)) => {
                // what is no number is no percentile
                Self::Percentile(text.parse().unwrap_or(f64::NAN))
            }
            _ => {
                let valid = Self::NAMES.map(|(name, _)| name);
                return Err(RecipeError::unknown_name("observer", name, &valid));
            }
        };
        observer.check()?;
        Ok(observer)
    }
}

impl std::fmt::Display for Rounding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nearest => "round to nearest",
            Self::Gptq { .. } => "GPTQ",
            Self::Clipped => "clipping",
            Self::HalfQuadratic => "HQQ",
            Self::Learned { .. } => "AutoRound",
        })
    }
}
