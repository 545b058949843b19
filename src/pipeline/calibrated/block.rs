//! One block: what goes into its layers, and what becomes of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::finish::{Finishing, Inputs};
use crate::calibrate::{Group, Saved, Store, observe_block, run_block};
use crate::dtype::Precision;
use crate::layer::{LayerStats, Needs};
use crate::model::blockwise::Blockwise;
use crate::pipeline::PipelineError;
use crate::pipeline::plan::{Plan, PlannedAction, PlannedTensor};
use crate::pipeline::transforms::Changed;
use crate::quantize::ActivationObserver;
use crate::recipe::InputQuantization;
use crate::weight::{CompressedWeight, InputScales};

/// What went into the layers of a block, by layer; those with the same input share it.
pub(in crate::pipeline) type SeenStats = BTreeMap<String, Arc<LayerStats>>;

/// A block and what is planned for its tensors.
pub(in crate::pipeline) struct Planned<'p> {
    pub(super) block: usize,
    tensors: &'p [&'p PlannedTensor<'p>],
    by_name: BTreeMap<&'p str, &'p PlannedTensor<'p>>,
}

impl<'p> Planned<'p> {
    pub(in crate::pipeline) fn new(block: usize, tensors: &'p [&'p PlannedTensor<'p>]) -> Self {
        Self { block, tensors, by_name: tensors.iter().map(|tensor| (tensor.name(), *tensor)).collect() }
    }

    /// The tensors of some layers, biases included.
    fn tensors_of(&self, is_asked: impl Fn(&str) -> bool) -> Vec<&'p PlannedTensor<'p>> {
        let is_of_them = |tensor: &PlannedTensor<'p>| {
            is_asked(tensor.name().rsplit_once('.').map_or("", |(layer, _)| layer))
        };
        self.tensors.iter().copied().filter(|tensor| is_of_them(tensor)).collect()
    }

    pub(super) fn weight_of(&self, layer: &str) -> Option<&'p PlannedTensor<'p>> {
        self.by_name.get(format!("{layer}.weight").as_str()).copied()
    }
}

impl Plan<'_> {
    /// Replaces the hidden states by what a block gives before it is compressed: as it was rotated, and nothing else, so that a
    /// run that goes on from here has the same bits.
    pub(in crate::pipeline) fn run_dense(
        &self,
        model: &mut Blockwise<'_>,
        planned: &Planned<'_>,
        store: &mut Store,
    ) -> Result<(), PipelineError> {
        let rotated = self.rotate_block(model, planned)?;
        run_block(model, planned.block, store)?;
        Ok(model.restore(planned.block, rotated.values.keys().map(String::as_str))?)
    }

    /// Compresses the tensors of a block, all of whose layers see what they got before; the hidden states stay.
    pub(super) fn calibrate_at_once(
        &self,
        model: &mut Blockwise<'_>,
        planned: &Planned<'_>,
        store: &mut Store,
        saved: Option<&Saved>,
    ) -> Result<Finishing, PipelineError> {
        let mut changed = self.rotate_block(model, planned)?;
        let needs = |layer: &str| self.needs_of_layer(planned, layer).max(self.transforms.needs_of(layer));
        let mut stats = observe_groups(model, planned.block, needs, store, saved)?;
        self.transforms.scale(self, &planned.by_name, planned.block, &mut changed, &mut stats)?;
        self.replace_changed(model, planned, &changed)?;
        let layers: Vec<String> = model.block_layers(planned.block).concat();
        let scales = self.observe_ranges(model, planned, &layers, store)?;
        model.restore(planned.block, changed.values.keys().map(String::as_str))?;
        let mut finishing = Finishing::new(changed);
        self.finish(planned.tensors, &Inputs { stats, scales }, &mut finishing)?;
        Ok(finishing)
    }

    /// Compresses the tensors of a block, layer after layer, each of which sees what those before it give when they are
    /// compressed; the hidden states stay.
    pub(super) fn calibrate_in_turn(
        &self,
        model: &mut Blockwise<'_>,
        planned: &Planned<'_>,
        store: &mut Store,
    ) -> Result<Finishing, PipelineError> {
        let block = planned.block;
        let mut changed = self.rotate_block(model, planned)?;
        if self.transforms.needs() > Needs::Nothing {
            // scales go into layers before: they must be known before those are compressed
            let needs = |layer: &str| self.transforms.needs_of(layer);
            let mut stats = observe_groups(model, block, needs, store, None)?;
            self.transforms.scale(self, &planned.by_name, block, &mut changed, &mut stats)?;
            self.replace_changed(model, planned, &changed)?;
        }
        let mut names: Vec<String> = changed.values.keys().cloned().collect();
        let mut finishing = Finishing::new(changed);
        let groups = model.block_layers(block);
        let others = planned.tensors_of(|layer| !groups.iter().flatten().any(|of_group| of_group == layer));
        self.finish(&others, &Inputs::default(), &mut finishing)?;
        for layers in &groups {
            let tensors = planned.tensors_of(|layer| layers.iter().any(|of_group| of_group == layer));
            if store.len() > 0 && !finishing.weights.is_empty() {
                let finished = finishing.weights.clone();
                names.extend(finished.iter().map(|(name, _)| name.clone()));
                model.replace(block, finished)?;
            }
            let needs = |layer: &str| {
                let is_asked = layers.iter().any(|asked| asked == layer);
                if is_asked { self.needs_of_layer(planned, layer) } else { Needs::Nothing }
            };
            let stats = observe_groups(model, block, needs, store, None)?;
            let scales = self.observe_ranges(model, planned, layers, store)?;
            self.finish(&tensors, &Inputs { stats, scales }, &mut finishing)?;
        }
        model.restore(block, names.iter().map(String::as_str))?;
        Ok(finishing)
    }

    /// Lets a block compute with what rotations made of its tensors.
    fn rotate_block(
        &self,
        model: &mut Blockwise<'_>,
        planned: &Planned<'_>,
    ) -> Result<Changed, PipelineError> {
        let rotated = self.transforms.rotate(self.checkpoint, planned.tensors.iter().map(|t| t.name()))?;
        self.replace_changed(model, planned, &rotated)?;
        Ok(rotated)
    }

    /// Lets a block compute with what the transforms made of its tensors.
    fn replace_changed(
        &self,
        model: &mut Blockwise<'_>,
        planned: &Planned<'_>,
        changed: &Changed,
    ) -> Result<(), PipelineError> {
        if !changed.values.is_empty() {
            let weight = |(name, values): (&String, &Vec<f32>)| {
                let shape = &planned.by_name.get(name.as_str()).map_or(&[][..], |tensor| &tensor.entry.shape);
                let weight = CompressedWeight::from_f32(shape, Precision::F32, values);
                Ok((name.clone(), weight.map_err(PipelineError::weight(self.source(), name))?))
            };
            model.replace(
                planned.block,
                changed.values.iter().map(weight).collect::<Result<Vec<_>, PipelineError>>()?,
            )?;
        }
        Ok(())
    }

    /// What static quantization makes of the inputs of some layers, by layer.
    fn observe_ranges(
        &self,
        model: &Blockwise<'_>,
        planned: &Planned<'_>,
        layers: &[String],
        store: &mut Store,
    ) -> Result<BTreeMap<String, InputScales>, PipelineError> {
        // layers with the same input can be asked for in different ways
        let mut asked = Vec::new();
        let mut groups = Vec::new();
        for layer in layers {
            let Some(tensor) = planned.weight_of(layer) else { continue };
            let PlannedAction::Compress(job) = &tensor.action else { continue };
            let Some(InputQuantization::Static { symmetric, observer }) = job.inputs else { continue };
            let error = PipelineError::method(self.source(), tensor.name());
            let range = Some(ActivationObserver::new(observer).map_err(error)?);
            groups.push(Group { range, ..Group::new(vec![layer.clone()]) });
            asked.push((tensor.name(), symmetric, job.precision));
        }
        observe_block(model, planned.block, &mut groups, store)?;
        let mut inputs = BTreeMap::new();
        for (group, (name, symmetric, precision)) in groups.into_iter().zip(asked) {
            let (Some(range), Some(layer)) = (group.range, group.layers.into_iter().next()) else { continue };
            let scales = range.static_input(symmetric, precision);
            inputs.insert(layer, scales.map_err(PipelineError::method(self.source(), name))?);
        }
        Ok(inputs)
    }

    /// What must be known of the input of a layer to compress it, and to correct its bias.
    fn needs_of_layer(&self, planned: &Planned<'_>, layer: &str) -> Needs {
        let of_method = planned.weight_of(layer).map(|tensor| self.needs_of(tensor)).unwrap_or_default();
        of_method.max(if self.corrected.contains(layer) { Needs::Channels } else { Needs::Nothing })
    }
}

/// What goes into the layers of a block, by layer; `needs` says what must be known of each.
pub(in crate::pipeline) fn observe_groups(
    model: &Blockwise<'_>,
    block: usize,
    needs: impl Fn(&str) -> Needs,
    store: &mut Store,
    saved: Option<&Saved>,
) -> Result<SeenStats, PipelineError> {
    let of_group = |layers: &[String]| layers.iter().map(|layer| needs(layer)).max().unwrap_or_default();
    let groups = model.block_layers(block).into_iter();
    let mut groups: Vec<Group> =
        groups.map(|layers| Group { needs: of_group(&layers), ..Group::new(layers) }).collect();
    if let Some(saved) = saved {
        if saved.has(block) {
            saved.read(block, &mut groups)?;
        } else {
            // whatever the next recipe needs
            for group in &mut groups {
                group.needs = Needs::Hessian;
            }
            observe_block(model, block, &mut groups, store)?;
            saved.write(block, &groups)?;
        }
    } else {
        observe_block(model, block, &mut groups, store)?;
    }
    let mut stats = BTreeMap::new();
    for Group { layers, stats: of_group, .. } in groups {
        let Some(of_group) = of_group.map(Arc::new) else { continue };
        stats.extend(layers.into_iter().map(|layer| (layer, Arc::clone(&of_group))));
    }
    Ok(stats)
}
