use super::RecipeError;
use crate::layer::Needs;
use crate::quantize::{AwqOptions, Smoothing};
use crate::transform::RotationOptions;

/// A change of the whole model that keeps its function, made before its layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Transform {
    /// Hadamard rotations of the residual and of the heads' values, which spread outliers over all channels (QuaRot).
    Rotate(RotationOptions),
    /// Scales of channels that move outliers from the activations into the weights (SmoothQuant).
    Smooth(Smoothing),
    /// Scales of channels that protect the weights which meet large activations (AWQ).
    ActivationAware(AwqOptions),
}

impl Transform {
    /// Names that [`from_name`](Self::from_name) knows, and what they are.
    pub const NAMES: [(&'static str, &'static str); 3] = [
        ("rotate", "Hadamard rotations folded into the weights (QuaRot's R1 and R2)"),
        ("smooth[=ALPHA]", "SmoothQuant's scales, with an α from 0 to 1 (0.5) or `search`"),
        ("awq", "AWQ's scales"),
    ];

    /// The transform of this name: `rotate`, `smooth`, `smooth=0.6`, `smooth=search`, `awq`.
    ///
    /// # Errors
    /// When there is none, or α is no number from 0 to 1.
    pub fn from_name(name: &str) -> Result<Self, RecipeError> {
        let alpha = |text: &str| match text.parse::<f32>() {
            Ok(alpha) if (0.0..=1.0).contains(&alpha) => Ok(Smoothing::Alpha(alpha)),
            _ => Err(RecipeError::value(
                format!("transform `{name}`"),
                "α must be a number from 0 to 1, or `search`",
            )),
        };
        match name.split_once('=') {
            None if name == "rotate" => Ok(Self::Rotate(RotationOptions::default())),
            None if name == "smooth" => Ok(Self::Smooth(Smoothing::default())),
            None if name == "awq" => Ok(Self::ActivationAware(AwqOptions::default())),
            Some(("smooth", "search")) => Ok(Self::Smooth(Smoothing::Search)),
            Some(("smooth", text)) => alpha(text).map(Self::Smooth),
            _ => Err(RecipeError::unknown_name("transform", name, &["rotate", "smooth", "awq"])),
        }
    }

    /// What it needs to know of the layers' inputs.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Rotate(_) => Needs::Nothing,
            Self::Smooth(Smoothing::Alpha(_)) => Needs::Channels,
            Self::Smooth(Smoothing::Search) | Self::ActivationAware(_) => Needs::Hessian,
        }
    }
}

impl std::fmt::Display for Transform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rotate(_) => f.write_str("rotation"),
            Self::Smooth(Smoothing::Alpha(alpha)) => write!(f, "smoothing by {alpha}"),
            Self::Smooth(Smoothing::Search) => f.write_str("searched smoothing"),
            Self::ActivationAware(_) => f.write_str("activation-aware scales"),
        }
    }
}
