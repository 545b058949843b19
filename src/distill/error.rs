//! What can be wrong with the inputs of a distillation loss.

/// An input or option that a distillation loss cannot use.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DistillError {
    /// Two inputs whose shapes must agree do not.
    #[error("{left} has shape {left_shape:?} but {right} has shape {right_shape:?}: {rule}")]
    ShapeMismatch {
        /// Name of the first input.
        left: &'static str,
        /// Its shape.
        left_shape: Vec<usize>,
        /// Name of the second input.
        right: &'static str,
        /// Its shape.
        right_shape: Vec<usize>,
        /// Which dimensions have to agree.
        rule: &'static str,
    },
    /// There is not one label for each row.
    #[error("{labels} labels for {rows} rows: give one label per row")]
    LabelCount {
        /// How many labels were given.
        labels: usize,
        /// How many rows the batch has.
        rows: usize,
    },
    /// A label is neither a class nor the ignored label.
    #[error(
        "label {label} of row {row} is not one of the {classes} classes, nor the ignored label {ignore_index}"
    )]
    LabelOutOfRange {
        /// Row of the label.
        row: usize,
        /// The label.
        label: i64,
        /// Number of classes; labels run from 0 to one less.
        classes: usize,
        /// The label that marks ignored rows.
        ignore_index: i64,
    },
    /// An input holds NaN or infinity.
    #[error("{input} holds {value} at {index:?}: every value has to be finite")]
    NonFinite {
        /// Name of the input.
        input: &'static str,
        /// Index of the first such value, in row-major order.
        index: Vec<usize>,
        /// The value.
        value: f32,
    },
    /// The temperature is not a positive finite number.
    #[error("temperature {value} is not a positive finite number")]
    Temperature {
        /// The temperature given.
        value: f32,
    },
    /// A factor of the loss lies outside its range.
    #[error("{name} is {value}, which is outside {range}")]
    OutOfRange {
        /// Name of the option.
        name: &'static str,
        /// The value given.
        value: f32,
        /// The values allowed, in words.
        range: &'static str,
    },
    /// There is not one class weight for each class.
    #[error("{weights} class weights for {classes} classes: give one weight per class")]
    ClassWeightCount {
        /// How many weights were given.
        weights: usize,
        /// How many classes the logits have.
        classes: usize,
    },
    /// A class weight is negative, infinite or NaN.
    #[error("class weight {value} of class {class} is not a finite number of at least 0")]
    ClassWeight {
        /// The class.
        class: usize,
        /// Its weight.
        value: f32,
    },
    /// An input has no elements.
    #[error("{input} is empty: its shape is {shape:?}")]
    Empty {
        /// Name of the input.
        input: &'static str,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// An input is too small along one axis for the loss to be defined.
    #[error("{input} has {found} {axis}, the loss needs at least {needed}")]
    TooFew {
        /// Name of the input.
        input: &'static str,
        /// What is counted: rows or classes.
        axis: &'static str,
        /// How many there are.
        found: usize,
        /// How many are needed.
        needed: usize,
    },
}
