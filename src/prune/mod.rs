//! Pruning: which weights to drop.
//!
//! A pruning method gives a [`Mask`](crate::Mask); as a step of a recipe it stores the weights that the mask keeps. Selection is
//! exact: as many weights go as were asked for, and among equals the ones with the higher index go first.
//!
//! [`Magnitude`] looks at the weights alone; [`Wanda`], [`SparseGpt`] and, for small layers, [`Obc`] also at what calibration saw at
//! the layer's input, and the latter two change the weights that stay. How much each of several layers loses is an [`Allocation`]: by
//! their magnitudes, their shapes, or what pruning costs each of them ([`Sensitivity`]).
//!
//! Whole units, such as the neurons of a hidden layer, go by their [`Importance`]; the layer that takes them, their [`Consumer`],
//! is then fitted anew to what stays.
//!
//! # While a network is trained
//!
//! Training is the caller's. A [`CubicSchedule`] says how much is to be zero at a step, a [`Mask`](crate::Mask) keeps it so, and a
//! network that was pruned before can be pruned further: zeros are the smallest magnitudes, so that they stay, and the sparsity is
//! that of the whole.
//!
//! ```
//! use tersor::{CubicSchedule, MagnitudeThreshold, Sparsity};
//!
//! let mut weights = vec![0.9, -0.1, 0.4, 0.05, -0.7, 0.3, 0.2, -0.6];
//! let schedule = CubicSchedule::new(Sparsity::new(0.0)?, Sparsity::new(0.75)?, 0, 30)?;
//! let mut earlier = None;
//! for step in 0..=30 {
//!     if step % 10 == 0 {
//!         let drop = schedule.at(step).of(weights.len() as u64);
//!         let mask = MagnitudeThreshold::of(drop, &[&weights]).next_mask(1, weights.len(), &weights)?;
//!         // what went before is gone now, too
//!         if let Some(earlier) = earlier.replace(mask.clone()) {
//!             assert_eq!(mask.and(&earlier)?, mask);
//!         }
//!     }
//!     // a step of the optimizer, here one that pushes every weight upwards
//!     weights.iter_mut().for_each(|w| *w += 0.001);
//!     if let Some(mask) = &earlier {
//!         mask.apply(&mut weights)?;
//!     }
//! }
//! assert_eq!(weights.iter().filter(|w| **w == 0.0).count(), 6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Between runs, files hold weights and masks, so that any program can train, and a run that comes later prunes further:
//!
//! ```
//! use std::ops::ControlFlow;
//! use tersor::{Checkpoint, CompressedWeight, Plan, Precision, PresetOptions, Recipe, load_masks, save_masks, save_weights};
//!
//! let folder = tempfile::tempdir()?;
//! let path = |name: &str| folder.path().join(name);
//! let values: Vec<f32> = (0..64 * 32).map(|i| (i as f32 * 0.7).sin()).collect();
//! let weight = |values: &[f32]| CompressedWeight::from_f32(&[64, 32], Precision::F32, values);
//! save_weights(path("dense.safetensors"), &[("fc.weight".into(), weight(&values)?)].into())?;
//!
//! let (mut source, mut masks) = (path("dense.safetensors"), None);
//! for share in ["50%", "75%", "90%"] {
//!     // prune: what was pruned is zero, so that it goes first
//!     let pruned = path(share);
//!     let checkpoint = Checkpoint::open(&source)?;
//!     let recipe = Recipe::preset(share, PresetOptions::default())?;
//!     Plan::new(&checkpoint, &recipe)?.run(&pruned, &mut |_| ControlFlow::Continue(()))?;
//!     let checkpoint = Checkpoint::open(&pruned)?;
//!     let mask = checkpoint.weight("fc.weight")?.mask().expect("it was pruned");
//!     let file = path(&format!("masks-{share}.safetensors"));
//!     save_masks(&file, &[("fc.weight".into(), mask.clone())].into())?;
//!     if let Some(earlier) = masks.replace(file.clone()) {
//!         assert_eq!(mask.and(&load_masks(earlier)?["fc.weight"])?, mask, "nothing comes back");
//!     }
//!
//!     // train, in any program that reads safetensors: every step ends with the mask
//!     let masks = load_masks(&file)?;
//!     let mut values = checkpoint.dense("fc.weight")?;
//!     for _ in 0..3 {
//!         values.iter_mut().for_each(|w| *w += 0.001);
//!         masks["fc.weight"].apply(&mut values)?;
//!     }
//!     source = path(&format!("trained-{share}.safetensors"));
//!     save_weights(&source, &[("fc.weight".into(), weight(&values)?)].into())?;
//! }
//! let zeros = Checkpoint::open(&source)?.dense("fc.weight")?.iter().filter(|w| **w == 0.0).count();
//! assert_eq!(zeros, 1843); // 90 % of 2048
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocation;
mod consumer;
mod elimination;
mod importance;
mod magnitude;
mod obc;
mod pattern;
mod plain;
mod pruning;
mod schedule;
mod sensitivity;
mod sparse_gpt;
mod structured;
mod wanda;

pub use allocation::{Allocation, erdos_renyi_kernel};
pub use consumer::{Consumer, Repaired};
pub use importance::Importance;
pub use magnitude::{Magnitude, MagnitudeThreshold, Sparsity, n_of_m_mask};
pub use obc::Obc;
pub use pattern::SparsityPattern;
pub use pruning::Pruning;
pub use schedule::CubicSchedule;
pub use sensitivity::{Sensitivity, by_sensitivity};
pub use sparse_gpt::SparseGpt;
pub use structured::{Axis, Structured};
pub use wanda::Wanda;
