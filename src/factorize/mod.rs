//! Low-rank compression: a weight as the product of two thin factors.
//!
//! [`Factorize`] puts two factors in the place of a weight, of the rank that a [`Rank`] says; [`Corrected`] adds them to what
//! another method makes of a weight, to make good what that lost. Both find the best factors there are: for the weight itself, or,
//! with [`ValueImportance::Inputs`](crate::ValueImportance), for the layer's output on what calibration saw.
//!
//! Factors are the same, to the last bit, at every instruction level and number of threads.

mod corrected;
mod method;
mod product;
mod rank;
mod svd;

pub use corrected::Corrected;
pub use method::Factorize;
pub use product::FactorType;
pub use rank::Rank;
