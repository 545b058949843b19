//! Changes to a model that keep its function, made before it is quantized: the outliers that quantization cannot express
//! are moved to where they do less harm.
//!
//! [`folds`] lists where the scale of a channel can move from a layer into those that it feeds; [`Rotation`] turns the
//! space in which a decoder's blocks exchange what they know.

mod error;
mod fold;
mod rotation;

pub use error::TransformError;
pub use fold::{Fold, Producer, SharedScales, Weights, folds};
pub use rotation::{AddedTensor, Rotation, RotationOptions};
