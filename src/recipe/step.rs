use std::sync::Arc;

use super::{Pattern, RecipeError};
use crate::checkpoint::TensorClass;
use crate::layer::Method;
use crate::prune::{Magnitude, Sparsity, Structured};
use crate::weight::{LayoutKind, NofM};

/// How pruned weights are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayoutChoice {
    /// Whichever takes the fewest bytes, dense included.
    #[default]
    Smallest,
    /// This one.
    Fixed(LayoutKind),
}

/// What a pruning step drops.
#[derive(Debug, Clone, PartialEq)]
pub enum Prune {
    /// The smallest magnitudes of each layer.
    Layer(Sparsity, LayoutChoice),
    /// The smallest magnitudes of all layers that the step names, taken together.
    Global(Sparsity, LayoutChoice),
    /// All but the `n` largest of every `m` neighbours.
    NofM(NofM, LayoutChoice),
    /// Whole rows or columns of each layer.
    Structured(Structured, LayoutChoice),
}

impl Prune {
    pub(crate) fn layout(&self) -> LayoutChoice {
        match self {
            Self::Layer(_, layout)
            | Self::Global(_, layout)
            | Self::NofM(_, layout)
            | Self::Structured(_, layout) => *layout,
        }
    }
}

impl std::fmt::Display for Prune {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layer(sparsity, _) => f.write_str(&Magnitude::Unstructured(*sparsity).name()),
            Self::Global(sparsity, _) => write!(f, "{}, global", Magnitude::Unstructured(*sparsity).name()),
            Self::NofM(pattern, _) => f.write_str(&Magnitude::NofM(*pattern).name()),
            Self::Structured(structured, _) => f.write_str(&structured.name()),
        }
    }
}

impl From<Magnitude> for Prune {
    fn from(magnitude: Magnitude) -> Self {
        match magnitude {
            Magnitude::Unstructured(sparsity) => Self::Layer(sparsity, LayoutChoice::Smallest),
            Magnitude::NofM(pattern) => Self::NofM(pattern, LayoutChoice::Smallest),
        }
    }
}

impl From<Structured> for Prune {
    fn from(structured: Structured) -> Self {
        Self::Structured(structured, LayoutChoice::Smallest)
    }
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Chooses which weights are kept.
    Prune(Prune),
    /// Chooses how kept weights are written.
    Quantize(Arc<dyn Method>),
}

/// One step of a recipe: what to do, and to which tensors.
///
/// Without further choice a step names every linear and convolution weight.
#[derive(Debug, Clone)]
pub struct Step {
    action: Action,
    classes: Vec<TensorClass>,
    names: Vec<Pattern>,
}

impl Step {
    /// A step that prunes.
    pub fn prune(prune: impl Into<Prune>) -> Self {
        Self::new(Action::Prune(prune.into()))
    }

    /// A step that quantizes or converts, with any [`Method`].
    pub fn quantize(method: impl Method + 'static) -> Self {
        Self::new(Action::Quantize(Arc::new(method)))
    }

    pub(crate) fn new(action: Action) -> Self {
        Self { action, classes: vec![TensorClass::Linear, TensorClass::Conv], names: Vec::new() }
    }

    /// Names tensors of these classes only.
    #[must_use]
    pub fn classes(mut self, classes: impl IntoIterator<Item = TensorClass>) -> Self {
        self.classes = classes.into_iter().collect();
        self
    }

    /// Names, of its classes, only the tensors that one of these patterns names.
    ///
    /// # Errors
    /// When a pattern is no valid regular expression.
    pub fn names<'a>(mut self, patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, RecipeError> {
        self.names = patterns.into_iter().map(Pattern::new).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// What the step does.
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// Whether the step names a tensor.
    pub fn applies_to(&self, name: &str, class: TensorClass) -> bool {
        self.classes.contains(&class) && (self.names.is_empty() || self.names.iter().any(|p| p.matches(name)))
    }
}
