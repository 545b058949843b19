use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::{Amount, Shrink};
use crate::checkpoint::formats::tersor;
use crate::checkpoint::{Checkpoint, Companions, Entry, Stored, TensorSpec, file_bytes};
use crate::layer::Needs;
use crate::model::structure::{Structure, UnitGroup};
use crate::model::{Execution, Network, UnitKind};
use crate::pipeline::PipelineError;

/// Units that stand side by side, and how many of them stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedUnits {
    /// What they are.
    pub kind: UnitKind,
    /// The layer that takes what they give, without `.weight`.
    pub layer: String,
    /// How many there are.
    pub before: usize,
    /// How many stay.
    pub after: usize,
    /// Heads of queries in one unit, and the size of a head; 0 where the units are no heads.
    pub(super) sharing: usize,
    pub(super) head_size: usize,
    /// Its number in the structure.
    pub(super) group: usize,
}

/// What becomes of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShrunkTensor {
    /// Its name.
    pub name: String,
    /// The name that it will have; `None` if it goes with its block.
    pub becomes: Option<String>,
    /// Its shape.
    pub before: Vec<usize>,
    /// The shape that it will have.
    pub after: Vec<usize>,
    /// How its values are stored, before and after.
    pub stored: String,
    /// Its bytes.
    pub bytes_before: u64,
    /// The bytes that it will have.
    pub bytes_after: u64,
    /// What it loses.
    pub(super) cuts: Cuts,
    /// Its number among the checkpoint's entries.
    pub(super) entry: usize,
}

/// What a tensor loses with some units, as a matrix of its rows and everything else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cuts {
    /// The group of the units, and the rows that each has.
    pub(super) rows: Option<(usize, usize)>,
    pub(super) cols: Option<(usize, usize)>,
    /// Groups that must be decided before it can be written.
    pub(super) waits_for: Vec<usize>,
}

/// What becomes of a network that loses some of its parts, and the exact bytes out.
#[derive(Debug)]
pub struct ShrinkPlan<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) options: Shrink,
    pub(super) structure: Structure,
    pub(super) units: Vec<PlannedUnits>,
    /// How many blocks go.
    pub(super) blocks: usize,
    pub(super) companions: Companions,
    cuts: HashMap<String, Cuts>,
}

/// A file of the output.
pub(super) struct ShrunkFile {
    pub(super) name: String,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) specs: Vec<TensorSpec>,
}

impl<'a> ShrinkPlan<'a> {
    /// Plans what leaving parts out does to a checkpoint. Reads no weights.
    ///
    /// # Errors
    /// When tersor does not run the network, so that it is not known what depends on what; it has no such parts, or all of them
    /// would go; the smaller network could not be described by its `config.json`; or a weight is compressed already.
    pub fn new(checkpoint: &'a Checkpoint, options: Shrink) -> Result<Self, PipelineError> {
        let refuse = |reason: String| PipelineError::Shrink { path: checkpoint.path().to_path_buf(), reason };
        for entry in checkpoint.entries() {
            if let Stored::Compressed(_) = entry.stored {
                return Err(refuse(format!(
                    "tensor `{}` is {}, and what is compressed is not taken apart; start from the original model, and \
                     compress what comes out",
                    entry.name,
                    entry.describe()
                )));
            }
        }
        let network = Network::open(checkpoint, Execution::default())?;
        let structure = Structure::of(checkpoint, &network)?;
        let mut units = Vec::new();
        for kind in [UnitKind::Neurons, UnitKind::Heads, UnitKind::Channels] {
            if let Some(amount) = options.amount(kind) {
                units.extend(plan_units(&options, &structure, kind, amount).map_err(refuse)?);
            }
        }
        units.sort_by_key(|group| group.group);
        let blocks = match options.blocks {
            None => 0,
            Some(amount) => plan_blocks(&structure, amount).map_err(refuse)?,
        };
        if units.is_empty() && blocks == 0 {
            return Err(refuse(
                "nothing is to be left out: say how many neurons, heads, channels or blocks".into(),
            ));
        }
        check_heads(checkpoint, &units).map_err(refuse)?;
        let mut cuts: HashMap<String, Cuts> = HashMap::new();
        for group in &units {
            add_cuts(&mut cuts, group.group, &structure.groups[group.group]);
        }
        let companions = checkpoint.companions()?;
        let plan = Self { checkpoint, options, structure, units, blocks, companions, cuts };
        plan.check_tensors()?;
        Ok(plan)
    }

    /// What it needs to know of the layers' inputs; a plan that leaves out blocks needs samples even if that is nothing.
    pub fn needs(&self) -> Needs {
        if self.units.is_empty() { Needs::Nothing } else { self.options.needs_of_units() }
    }

    /// Whether it needs calibration samples, and for what.
    pub(super) fn needs_samples(&self) -> Option<String> {
        if self.blocks > 0 {
            return Some("to see which blocks do least".into());
        }
        (self.needs() > Needs::Nothing).then(|| {
            let importance = format!("{:?}", self.options.importance).to_lowercase();
            if self.options.repair {
                "to repair what takes the units".into()
            } else {
                format!("to judge units by {importance}")
            }
        })
    }

    /// The units that lose some, in the order of the computation.
    pub fn units(&self) -> &[PlannedUnits] {
        &self.units
    }

    /// How many blocks go, and of how many.
    pub fn blocks(&self) -> Option<(usize, usize)> {
        self.structure.blocks.as_ref().map(|blocks| (self.blocks, blocks.count))
    }

    /// The source.
    pub fn source(&self) -> &Path {
        self.checkpoint.path()
    }

    /// Every tensor of the model. Which blocks go is found by the run; here it is the last ones.
    pub fn tensors(&self) -> Vec<ShrunkTensor> {
        self.tensors_with(&self.last_blocks())
    }

    /// Bytes of the source's safetensors files.
    pub fn bytes_before(&self) -> u64 {
        self.checkpoint.file_bytes()
    }

    /// Exact bytes of the output's safetensors files; exact as long as all blocks have the same shapes and types, which is so
    /// where each file holds a whole number of them.
    pub fn bytes_after(&self) -> u64 {
        let files = self.files(&self.tensors());
        files.iter().map(|file| file_bytes(&file.specs, &file.metadata)).sum()
    }

    /// Weights in the source's folder that are not part of the checkpoint, and that the output will therefore lack.
    pub fn left_behind(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.companions.left_behind.iter().map(PathBuf::as_path)
    }

    fn last_blocks(&self) -> Vec<bool> {
        let count = self.structure.blocks.as_ref().map_or(0, |blocks| blocks.count);
        (0..count).map(|block| block < count - self.blocks).collect()
    }

    /// Every tensor of the model, given which blocks stay.
    pub(super) fn tensors_with(&self, kept_blocks: &[bool]) -> Vec<ShrunkTensor> {
        let entries = self.checkpoint.entries().iter().enumerate();
        entries.map(|(number, entry)| self.tensor(number, entry, kept_blocks)).collect()
    }

    fn tensor(&self, number: usize, entry: &Entry, kept_blocks: &[bool]) -> ShrunkTensor {
        let cuts = self.cuts.get(&entry.name).cloned().unwrap_or_default();
        let split = self.structure.blocks.as_ref().and_then(|names| Some((names, names.split(&entry.name)?)));
        let becomes = match split {
            None => Some(entry.name.clone()),
            Some((names, (block, rest))) => kept_blocks[block].then(|| {
                let before = kept_blocks[..block].iter().filter(|kept| **kept).count();
                format!("{}{before}.{rest}", names.prefix)
            }),
        };
        let mut after = entry.shape.clone();
        let after_of = |group: usize| self.units.iter().find(|u| u.group == group).map_or(0, |u| u.after);
        if let (Some((group, width)), Some(rows)) = (cuts.rows, after.first_mut()) {
            *rows = after_of(group) * width;
        }
        if let (Some((group, width)), [_, features, window @ ..]) = (cuts.cols, after.as_mut_slice()) {
            *features = after_of(group) * width / window.iter().product::<usize>().max(1);
        }
        let elements: usize = after.iter().product();
        let bytes_after = match becomes {
            None => 0,
            Some(_) => (entry.bytes as usize / entry.elements().max(1) * elements) as u64,
        };
        ShrunkTensor {
            name: entry.name.clone(),
            becomes,
            before: entry.shape.clone(),
            after,
            stored: entry.describe(),
            bytes_before: entry.bytes,
            bytes_after,
            cuts,
            entry: number,
        }
    }

    /// The files of the output with the tensors that they hold: the source's, without those that lost all of theirs.
    pub(super) fn files(&self, tensors: &[ShrunkTensor]) -> Vec<ShrunkFile> {
        let single = self.checkpoint.files().len() == 1;
        let mut files = Vec::new();
        for (number, path) in self.checkpoint.files().enumerate() {
            let of_file = tensors.iter().filter(|t| self.checkpoint.entries()[t.entry].file == number);
            let specs: Vec<TensorSpec> = of_file.filter_map(|t| self.spec(t)).collect();
            if specs.is_empty() && !single {
                continue;
            }
            let mut metadata = self.checkpoint.metadata(number).cloned().unwrap_or_default();
            metadata.remove(tersor::KEY);
            // transformers refuses files that do not say which framework's tensors they hold
            metadata.entry("format".into()).or_insert_with(|| "pt".into());
            let name = if single { Path::new("model.safetensors") } else { path };
            let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push(ShrunkFile { name, metadata, specs });
        }
        files
    }

    fn spec(&self, tensor: &ShrunkTensor) -> Option<TensorSpec> {
        let Stored::Plain(dtype) = self.checkpoint.entries()[tensor.entry].stored else { return None };
        Some(TensorSpec { name: tensor.becomes.clone()?, dtype, shape: tensor.after.clone() })
    }

    /// What is cut must have the sizes that the structure says, and what is fitted anew a type that its values can be written in.
    fn check_tensors(&self) -> Result<(), PipelineError> {
        let refuse = |name: &str, reason: String| PipelineError::Shrink {
            path: self.checkpoint.entry_file(name).unwrap_or(self.source()).to_path_buf(),
            reason: format!("tensor `{name}` {reason}"),
        };
        for (name, cuts) in &self.cuts {
            let entry = self.checkpoint.entry(name)?;
            let cols: usize = entry.shape.iter().skip(1).product();
            let sides = [(cuts.rows, entry.shape.first().copied().unwrap_or(0)), (cuts.cols, cols)];
            for ((group, width), len) in sides.into_iter().filter_map(|(cut, len)| Some((cut?, len))) {
                let expected = self.structure.groups[group].count * width;
                if len != expected {
                    return Err(refuse(
                        name,
                        format!("has the shape {:?}, where {expected} were expected", entry.shape),
                    ));
                }
            }
        }
        if !self.options.repair {
            return Ok(());
        }
        for group in &self.units {
            let consumer = &self.structure.groups[group.group].consumer;
            for name in [Some(consumer.weight()), consumer.bias()].into_iter().flatten() {
                let entry = self.checkpoint.entry(&name)?;
                if entry.precision().is_none_or(|precision| entry.stored != Stored::Plain(precision.dtype()))
                {
                    let stored = entry.describe();
                    let reason = format!(
                        "is {stored}, in which nothing can be fitted anew; convert the model to F32, F16 or BF16"
                    );
                    return Err(refuse(&name, reason));
                }
            }
        }
        Ok(())
    }
}

/// The groups of a kind that lose units.
fn plan_units(
    options: &Shrink,
    structure: &Structure,
    kind: UnitKind,
    amount: Amount,
) -> Result<Vec<PlannedUnits>, String> {
    let groups = || structure.groups.iter().enumerate().filter(|(_, group)| group.kind == kind);
    if groups().next().is_none() {
        let reason = structure.no_heads.filter(|_| kind == UnitKind::Heads);
        return Err(match reason {
            Some(reason) => format!("heads cannot be left out: {reason}"),
            None => format!("the network has no {kind} between two layers that could be left out"),
        });
    }
    // a multiple is for products; heads have their own size
    let multiple = if kind == UnitKind::Heads { NonZeroUsize::new(1) } else { options.multiple };
    let mut planned = Vec::new();
    for (number, group) in groups() {
        let after = amount.kept(group.count, multiple);
        if after == 0 {
            return Err(format!(
                "{amount} of the {} {kind} before `{}` would leave none; at least one must stay",
                group.count, group.consumer.name
            ));
        }
        if after < group.count {
            let head_size = group.makers.get(1).map_or(0, |(_, rows)| *rows);
            let sharing = group.width.checked_div(head_size).unwrap_or(0);
            let layer = group.consumer.name.clone();
            planned.push(PlannedUnits {
                kind,
                layer,
                before: group.count,
                after,
                sharing,
                head_size,
                group: number,
            });
        }
    }
    if planned.is_empty() {
        let or = if kind == UnitKind::Heads { "" } else { ", or for another multiple" };
        return Err(format!(
            "{amount} of the {kind} are none, once what stays is rounded up; ask for more{or}"
        ));
    }
    Ok(planned)
}

fn plan_blocks(structure: &Structure, amount: Amount) -> Result<usize, String> {
    let Some(blocks) = &structure.blocks else {
        return Err("blocks cannot be left out: each layer takes what the one before it gives".into());
    };
    let kept = amount.kept(blocks.count, std::num::NonZeroUsize::new(1));
    match blocks.count - kept {
        0 => Err(format!("{amount} of {} blocks are none", blocks.count)),
        _ if kept == 0 => {
            Err(format!("{amount} of {} blocks would leave none; at least one must stay", blocks.count))
        }
        removed => Ok(removed),
    }
}

/// transformers does not load every number of heads.
fn check_heads(checkpoint: &Checkpoint, units: &[PlannedUnits]) -> Result<(), String> {
    let Some(group) = units.iter().find(|group| group.kind == UnitKind::Heads) else { return Ok(()) };
    let key = |key: &str| checkpoint.config().and_then(|config| config.get(key));
    let heads = group.after * group.sharing;
    let hidden = key("hidden_size").and_then(serde_json::Value::as_u64).unwrap_or(0) as usize;
    if key("model_type").and_then(|value| value.as_str()) == Some("llama") && !hidden.is_multiple_of(heads) {
        let possible: Vec<String> = (1..group.before)
            .filter(|after| hidden.is_multiple_of(after * group.sharing))
            .map(|after| (group.before - after).to_string())
            .collect();
        let advice = if possible.is_empty() {
            "no other number is possible".to_owned()
        } else {
            format!("leave out {}", possible.join(" or "))
        };
        return Err(format!(
            "{heads} attention heads would remain, but transformers loads a llama only if they divide `hidden_size` {hidden}; \
             {advice}, each with the {} heads that share its keys and values",
            group.sharing
        ));
    }
    Ok(())
}

fn add_cuts(cuts: &mut HashMap<String, Cuts>, number: usize, group: &UnitGroup) {
    for (maker, rows) in &group.makers {
        for name in [Some(maker.weight()), maker.bias()].into_iter().flatten() {
            let cut = cuts.entry(name).or_default();
            cut.rows = Some((number, *rows));
            cut.waits_for.push(number);
        }
    }
    let cut = cuts.entry(group.consumer.weight()).or_default();
    cut.cols = Some((number, group.width));
    cut.waits_for.push(number);
    if let Some(bias) = group.consumer.bias() {
        cuts.entry(bias).or_default().waits_for.push(number);
    }
}
