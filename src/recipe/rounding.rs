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
