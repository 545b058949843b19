use std::sync::Arc;

use super::{Pattern, RecipeError};
use crate::checkpoint::TensorClass;
use crate::factorize::{Corrected, Factorize};
use crate::layer::Method;
use crate::prune::{Allocation, Magnitude, Obc, Pruning, SparseGpt, Sparsity, Structured, Wanda};
use crate::quantize::Observer;
use crate::weight::{InputForm, LayoutKind};

/// How pruned weights are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayoutChoice {
    /// Whichever takes the fewest bytes, dense included.
    #[default]
    Smallest,
    /// This one.
    Fixed(LayoutKind),
}

/// Which weights a pruning step drops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Selection {
    /// Within each layer, to the same sparsity.
    Layer(Pruning),
    /// Within each layer, of all layers that the step names together so many as the method's sparsity says.
    Allocated(Pruning, Allocation),
    /// The smallest magnitudes of all layers that the step names, taken together.
    Global(Sparsity),
    /// Whole rows or columns of each layer.
    Structured(Structured),
}

/// What a pruning step does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prune {
    /// Which weights it drops.
    pub selection: Selection,
    /// How what it keeps is laid out.
    pub layout: LayoutChoice,
}

impl std::fmt::Display for Prune {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.selection {
            Selection::Layer(pruning) => f.write_str(&pruning.method().name()),
            Selection::Allocated(pruning, allocation) => {
                write!(f, "{}, {allocation}", pruning.method().name())
            }
            Selection::Global(sparsity) => write!(f, "{}, global", Magnitude::Unstructured(sparsity).name()),
            Selection::Structured(structured) => f.write_str(&structured.name()),
        }
    }
}

impl From<Selection> for Prune {
    fn from(selection: Selection) -> Self {
        Self { selection, layout: LayoutChoice::Smallest }
    }
}

impl From<Pruning> for Prune {
    fn from(pruning: Pruning) -> Self {
        Selection::Layer(pruning).into()
    }
}

impl From<Magnitude> for Prune {
    fn from(magnitude: Magnitude) -> Self {
        Pruning::from(magnitude).into()
    }
}

impl From<Wanda> for Prune {
    fn from(wanda: Wanda) -> Self {
        Pruning::from(wanda).into()
    }
}

impl From<Obc> for Prune {
    fn from(obc: Obc) -> Self {
        Pruning::from(obc).into()
    }
}

impl From<SparseGpt> for Prune {
    fn from(sparse_gpt: SparseGpt) -> Self {
        Pruning::from(sparse_gpt).into()
    }
}

impl From<Structured> for Prune {
    fn from(structured: Structured) -> Self {
        Selection::Structured(structured).into()
    }
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Chooses which weights are kept.
    Prune(Prune),
    /// Chooses how kept weights are written.
    Quantize(Arc<dyn Method>),
    /// Puts two factors in the place of a weight.
    Factorize(Factorize),
}

/// What writes a tensor's weights.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Written<'a> {
    Quantized(&'a dyn Method),
    Factorized(Factorize),
}

impl Written<'_> {
    pub(crate) fn method(&self) -> &dyn Method {
        match self {
            Self::Quantized(method) => *method,
            Self::Factorized(factorize) => factorize,
        }
    }
}

/// How a quantizing step has the inputs of its layers rounded to 8 bits while the network runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum InputQuantization {
    /// Every token has its own scale, found while the network runs.
    Dynamic {
        /// Whether zero points are 0.
        symmetric: bool,
    },
    /// All inputs of a layer share one scale, which calibration finds.
    Static {
        /// Whether the zero point is 0.
        symmetric: bool,
        /// What finds the range that the codes span.
        observer: Observer,
    },
}

impl InputQuantization {
    /// What becomes of a layer's input.
    pub fn form(self) -> InputForm {
        match self {
            Self::Dynamic { symmetric } => InputForm::Dynamic { symmetric },
            Self::Static { symmetric, .. } => InputForm::Static { symmetric },
        }
    }
}

/// One step of a recipe: what to do, and to which tensors.
///
/// Without further choice a step names every linear and convolution weight.
#[derive(Debug, Clone)]
pub struct Step {
    action: Action,
    classes: Vec<TensorClass>,
    names: Vec<Pattern>,
    inputs: Option<InputQuantization>,
    /// Whether the recipe's usual exceptions hold for it.
    spares_usual: bool,
}

impl Step {
    /// A step that prunes.
    pub fn prune(prune: impl Into<Prune>) -> Self {
        Self::new(Action::Prune(prune.into()))
    }

    /// A step that quantizes or converts, with any [`Method`].
    pub fn quantize(method: impl Method + 'static) -> Self {
        Self::of(Arc::new(method))
    }

    /// A step that puts two factors in the place of every weight for which they take fewer bytes.
    pub fn factorize(factorize: Factorize) -> Self {
        Self::new(Action::Factorize(factorize))
    }

    /// The same step, which adds factors of low rank to what it quantizes.
    pub(super) fn corrected(self, correct: impl FnOnce(Arc<dyn Method>) -> Corrected) -> Self {
        match self.action {
            Action::Quantize(method) => Self { action: Action::Quantize(Arc::new(correct(method))), ..self },
            Action::Prune(_) | Action::Factorize(_) => self,
        }
    }

    pub(super) fn of(method: Arc<dyn Method>) -> Self {
        Self::new(Action::Quantize(method))
    }

    pub(crate) fn new(action: Action) -> Self {
        Self {
            action,
            classes: vec![TensorClass::Linear, TensorClass::Conv],
            names: Vec::new(),
            inputs: None,
            spares_usual: false,
        }
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

    /// Has the inputs of the layers, whose weights it quantizes to integers, quantized too.
    #[must_use]
    pub fn inputs(self, inputs: InputQuantization) -> Self {
        Self { inputs: Some(inputs), ..self }
    }

    /// How the inputs of the layers are quantized; `None`: they are not.
    pub fn input_quantization(&self) -> Option<InputQuantization> {
        self.inputs
    }

    /// Leaves alone what presets leave alone.
    pub(super) fn sparing_usual(self) -> Self {
        Self { spares_usual: true, ..self }
    }

    pub(super) fn spares_usual(&self) -> bool {
        self.spares_usual
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
