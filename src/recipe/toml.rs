//! Recipes in TOML, as the documentation of the room describes them.

use std::num::NonZeroUsize;

use toml::{Table, Value};

use super::preset::n_of_m;
use super::{
    Action, Criterion, InputQuantization, LayoutChoice, OutputFormat, Prune, Recipe, RecipeError, Rounding,
    Selection, Step, Transform,
};
use crate::checkpoint::TensorClass;
use crate::dtype::Precision;
use crate::factorize::{Corrected, FactorType, Factorize, Rank};
use crate::kernels::kmeans::Start;
use crate::prune::{Allocation, Axis, Magnitude, Sparsity, SparsityPattern, Structured};
use crate::quantize::{CodeType, Damping, FloatCast, KMeans, Observer, Overflow, ValueImportance};
use crate::weight::{Bits, CodebookBits, Granularity, LayoutKind};

impl Recipe {
    /// Reads a recipe written in TOML.
    ///
    /// ```
    /// use tersor::Recipe;
    ///
    /// let recipe = Recipe::from_toml(
    ///     r#"
    ///     ignore = ["lm_head"]
    ///     [[step]]
    ///     prune = { method = "n:m", pattern = "2:4" }
    ///     [[step]]
    ///     quantize = { type = "int", bits = 8, strategy = "channel" }
    ///     "#,
    /// )?;
    /// assert_eq!(recipe.steps().len(), 2);
    /// let error = Recipe::from_toml("[[step]]\nquantise = { bits = 8 }").unwrap_err();
    /// assert!(error.to_string().contains("did you mean `quantize`?"));
    /// # Ok::<(), tersor::RecipeError>(())
    /// ```
    ///
    /// # Errors
    /// When the TOML is malformed, or a key or value is unknown: the error says which, and what would be valid.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| RecipeError::Syntax {
            reason: e.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" "),
        })?;
        let root = Fields { place: "the recipe".into(), table: &table };
        root.only(&["format", "entropy", "ignore", "transforms", "bias_correction", "reconstruct", "step"])?;
        let mut recipe = Self::new().correct_biases(root.boolean("bias_correction")?.unwrap_or(false));
        if let Some(steps) = root.at_least_one("reconstruct")? {
            recipe = recipe.reconstruct(steps);
        }
        if let Some(name) = root.string("format")? {
            recipe = recipe.format(OutputFormat::from_name(name)?);
        }
        recipe = recipe.entropy(root.boolean("entropy")?.unwrap_or(false));
        for pattern in root.strings("ignore")?.unwrap_or_default() {
            recipe = recipe.ignore(pattern)?;
        }
        for name in root.strings("transforms")?.unwrap_or_default() {
            recipe = recipe.transform(Transform::from_name(name)?);
        }
        let steps = match table.get("step") {
            Some(Value::Array(steps)) => steps.as_slice(),
            Some(_) => return Err(RecipeError::value("step", "steps are written as [[step]] tables")),
            None => &[],
        };
        if steps.is_empty() && !recipe.is_entropy_coded() {
            return Err(RecipeError::value("step", "the recipe has no [[step]]"));
        }
        for (i, value) in steps.iter().enumerate() {
            let place = format!("step {}", i + 1);
            let Value::Table(table) = value else { return Err(RecipeError::value(place, "is no table")) };
            recipe = recipe.step(read_step(&Fields { place, table })?);
        }
        Ok(recipe)
    }
}

impl OutputFormat {
    /// The format of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_name(name: &str) -> Result<Self, RecipeError> {
        match name {
            "compressed-tensors" => Ok(Self::CompressedTensors),
            "tersor" => Ok(Self::Tersor),
            _ => Err(RecipeError::unknown_name("format", name, &["compressed-tensors", "tersor"])),
        }
    }
}

fn read_step(fields: &Fields<'_>) -> Result<Step, RecipeError> {
    fields.only(&["classes", "names", "prune", "quantize", "low_rank"])?;
    let step = match (fields.table("prune")?, fields.table("quantize")?, fields.table("low_rank")?) {
        (Some(prune), None, None) => Step::new(Action::Prune(read_prune(&prune)?)),
        (None, Some(quantize), None) => read_quantize(&quantize)?,
        (None, None, Some(low_rank)) => Step::factorize(read_low_rank(&low_rank)?),
        _ => {
            let reason = "needs one of `prune`, `quantize` and `low_rank`; two things are two steps";
            return Err(RecipeError::value(&*fields.place, reason));
        }
    };
    finish_step(fields, step)
}

fn finish_step(fields: &Fields<'_>, mut step: Step) -> Result<Step, RecipeError> {
    if let Some(names) = fields.strings("classes")? {
        let valid = TensorClass::ALL.map(|c| c.to_string());
        let valid = valid.each_ref().map(String::as_str);
        let classes = names.into_iter().map(|name| {
            TensorClass::from_name(name).ok_or_else(|| RecipeError::unknown_name("class", name, &valid))
        });
        step = step.classes(classes.collect::<Result<Vec<_>, _>>()?);
    }
    if let Some(names) = fields.strings("names")? {
        if names.is_empty() {
            return Err(RecipeError::value(
                fields.key("names"),
                "names nothing; leave it out to name everything",
            ));
        }
        step = step.names(names)?;
    }
    Ok(step)
}

fn read_prune(fields: &Fields<'_>) -> Result<Prune, RecipeError> {
    fields.only(&["method", "sparsity", "scope", "pattern", "damping", "shrinkage", "layout"])?;
    let sparsity =
        || Ok::<_, RecipeError>(Sparsity::new(fields.required("sparsity", fields.number("sparsity")?)?)?);
    let method = fields.required("method", fields.string("method")?)?;
    match method {
        "magnitude" | "wanda" => fields.only(&["method", "sparsity", "scope", "pattern", "layout"])?,
        "n:m" => fields.only(&["method", "pattern", "layout"])?,
        "rows" | "columns" => fields.only(&["method", "sparsity", "layout"])?,
        _ => {}
    }
    let pattern = match fields.string("pattern")? {
        Some(text) => {
            let (n, m) = text.split_once(':').unwrap_or((text, ""));
            Some(n_of_m(n, m, text)?)
        }
        None => None,
    };
    let layout = match (fields.string("layout")?, pattern) {
        (None | Some("smallest"), _) => LayoutChoice::Smallest,
        (Some("dense"), _) => LayoutChoice::Fixed(LayoutKind::Dense),
        (Some("bitmask"), _) => LayoutChoice::Fixed(LayoutKind::Bitmask),
        (Some("rows"), _) => LayoutChoice::Fixed(LayoutKind::CompressedRows),
        (Some("n:m"), Some(pattern)) => LayoutChoice::Fixed(LayoutKind::NofM(pattern)),
        (Some("n:m"), None) => {
            return Err(RecipeError::value(fields.key("layout"), "`n:m` needs a `pattern`"));
        }
        (Some(name), _) => {
            let valid = ["smallest", "dense", "bitmask", "rows", "n:m"];
            return Err(RecipeError::unknown_name("layout", name, &valid));
        }
    };
    let selection = match method {
        "n:m" => Selection::Layer(Magnitude::NofM(fields.required("pattern", pattern)?).into()),
        "rows" => Selection::Structured(Structured::new(Axis::Rows, sparsity()?)),
        "columns" => Selection::Structured(Structured::new(Axis::Cols, sparsity()?)),
        name => {
            let criterion = read_criterion(fields, name)?;
            let target = match pattern {
                Some(_) if fields.table.contains_key("sparsity") => {
                    return Err(RecipeError::value(&*fields.place, "has both `sparsity` and `pattern`"));
                }
                Some(pattern) => SparsityPattern::NofM(pattern),
                None => SparsityPattern::Unstructured(sparsity()?),
            };
            let allocation = Allocation::from_name(fields.string("scope")?.unwrap_or("layer"))?;
            criterion.selection(&fields.key("scope"), target, allocation)?
        }
    };
    Ok(Prune { selection, layout })
}

fn read_criterion(fields: &Fields<'_>, name: &str) -> Result<Criterion, RecipeError> {
    match Criterion::from_name(name) {
        Ok(Criterion::SparseGpt { .. }) => Ok(Criterion::SparseGpt { damping: read_damping(fields)? }),
        Ok(Criterion::Obc { .. }) => Ok(Criterion::Obc { damping: read_damping(fields)? }),
        Ok(criterion) => Ok(criterion),
        Err(_) => {
            let valid = ["magnitude", "wanda", "sparsegpt", "obc", "n:m", "rows", "columns"];
            Err(RecipeError::unknown_name("pruning method", name, &valid))
        }
    }
}

fn read_damping(fields: &Fields<'_>) -> Result<Damping, RecipeError> {
    let damping = fields.number("damping")?;
    if damping.is_some_and(|damping| !(damping > 0.0 && damping.is_finite())) {
        return Err(RecipeError::value(fields.key("damping"), "must be above 0"));
    }
    let shrinkage = fields.number("shrinkage")?.unwrap_or(0.0);
    if !(0.0..1.0).contains(&shrinkage) {
        return Err(RecipeError::value(fields.key("shrinkage"), "must be from 0 to below 1"));
    }
    Ok(damping.map_or_else(Damping::default, Damping::of_mean).shrinkage(shrinkage))
}

fn read_quantize(fields: &Fields<'_>) -> Result<Step, RecipeError> {
    const CODES: [&str; 19] = [
        "type",
        "bits",
        "symmetric",
        "strategy",
        "group_size",
        "block",
        "observer",
        "percentile",
        "overflow",
        "method",
        "act_order",
        "damping",
        "shrinkage",
        "iterations",
        "activations",
        "activation_symmetric",
        "activation_observer",
        "activation_percentile",
        "correction",
    ];
    let kind = fields.string("type")?.unwrap_or("int");
    if kind == "codebook" {
        return read_codebook(fields);
    }
    fields.only(&CODES)?;
    let precision = match kind {
        "f16" => Some(Precision::F16),
        "bf16" => Some(Precision::Bf16),
        _ => None,
    };
    if let Some(precision) = precision {
        fields.only(&["type", "overflow"])?;
        let overflow = match fields.string("overflow")? {
            None | Some("refuse") => Overflow::Refuse,
            Some("clamp") => Overflow::Clamp,
            Some(name) => return Err(RecipeError::unknown_name("overflow", name, &["refuse", "clamp"])),
        };
        return Ok(Step::quantize(FloatCast::to(precision).overflow(overflow)));
    }
    let codes = match kind {
        "int" => {
            let bits = fields.required("bits", fields.integer("bits")?)?;
            let bits = u8::try_from(bits).ok().and_then(Bits::new);
            let bits = bits.ok_or_else(|| RecipeError::value(fields.key("bits"), "must be 2 to 8"))?;
            CodeType::Int { bits, symmetric: fields.boolean("symmetric")?.unwrap_or(true) }
        }
        "f8_e4m3" => {
            let valid = ["type", "strategy", "group_size", "block", "observer", "percentile", "correction"];
            fields.only(&valid)?;
            CodeType::F8E4M3
        }
        name => {
            let valid = ["int", "f8_e4m3", "codebook", "f16", "bf16"];
            return Err(RecipeError::unknown_name("type", name, &valid));
        }
    };
    if fields.table.contains_key("overflow") {
        return Err(RecipeError::value(fields.key("overflow"), "belongs to types f16 and bf16"));
    }
    let observer = read_observer(fields, "observer", "percentile")?;
    let step = read_rounding(fields)?.step(&fields.place, codes, read_granularity(fields)?, observer)?;
    let step = match read_inputs(fields)? {
        Some(inputs) => step.inputs(inputs),
        None => step,
    };
    read_correction(fields, step)
}

/// A step with the factors that its `correction` asks for.
fn read_correction(fields: &Fields<'_>, step: Step) -> Result<Step, RecipeError> {
    let Some(fields) = fields.table("correction")? else { return Ok(step) };
    fields.only(&["rank", "dtype", "importance"])?;
    let rank = fields.required("rank", fields.at_least_one("rank")?)?;
    let (factor_type, importance) = (read_factor_type(&fields)?, read_importance(&fields)?);
    Ok(step.corrected(|method| {
        let corrected = Corrected::of(method, rank).importance(importance);
        match factor_type {
            Some(factor_type) => corrected.factor_type(factor_type),
            None => corrected,
        }
    }))
}

fn read_low_rank(fields: &Fields<'_>) -> Result<Factorize, RecipeError> {
    fields.only(&["rank", "energy", "bytes", "dtype", "importance"])?;
    let rank = match (fields.at_least_one("rank")?, fields.number("energy")?, fields.number("bytes")?) {
        (Some(rank), None, None) => Rank::fixed(rank),
        (None, Some(share), None) => Rank::energy(share)?,
        (None, None, Some(share)) => Rank::bytes(share)?,
        _ => {
            return Err(RecipeError::value(
                &*fields.place,
                "needs exactly one of `rank`, `energy` and `bytes`",
            ));
        }
    };
    let factorize = Factorize::new(rank).importance(read_importance(fields)?);
    Ok(read_factor_type(fields)?.map_or(factorize, |factor_type| factorize.factor_type(factor_type)))
}

fn read_factor_type(fields: &Fields<'_>) -> Result<Option<FactorType>, RecipeError> {
    let Some(name) = fields.string("dtype")? else { return Ok(None) };
    let bits = |digits: &str| Bits::new(digits.parse().ok()?);
    Ok(Some(match name {
        "f32" => FactorType::Float(Precision::F32),
        "f16" => FactorType::Float(Precision::F16),
        "bf16" => FactorType::Float(Precision::Bf16),
        _ => {
            let Some(bits) = name.strip_prefix("int").and_then(bits) else {
                let valid = ["f32", "f16", "bf16", "int8", "int7", "int6", "int5", "int4", "int3", "int2"];
                return Err(RecipeError::unknown_name("dtype", name, &valid));
            };
            FactorType::Int(bits)
        }
    }))
}

fn read_importance(fields: &Fields<'_>) -> Result<ValueImportance, RecipeError> {
    match fields.string("importance")? {
        None | Some("equal") => Ok(ValueImportance::Equal),
        Some("inputs") => Ok(ValueImportance::Inputs),
        Some(name) => Err(RecipeError::unknown_name("importance", name, &["equal", "inputs"])),
    }
}

fn read_codebook(fields: &Fields<'_>) -> Result<Step, RecipeError> {
    let valid =
        ["type", "bits", "strategy", "group_size", "block", "start", "seed", "importance", "correction"];
    fields.only(&valid)?;
    let bits = fields.required("bits", fields.integer("bits")?)?;
    let bits = u8::try_from(bits).ok().and_then(CodebookBits::new);
    let bits = bits.ok_or_else(|| RecipeError::value(fields.key("bits"), "must be 1 to 8"))?;
    let seed = fields.integer("seed")?;
    let start = match fields.string("start")? {
        Some("random") => {
            let seed = u64::try_from(seed.unwrap_or(0));
            Start::Random {
                seed: seed.map_err(|_| RecipeError::value(fields.key("seed"), "must not be negative"))?,
            }
        }
        _ if seed.is_some() => {
            return Err(RecipeError::value(fields.key("seed"), "belongs to start = \"random\""));
        }
        None | Some("optimal") => Start::Optimal,
        Some("linear") => Start::Linear,
        Some("density") => Start::Density,
        Some(name) => {
            let valid = ["optimal", "linear", "density", "random"];
            return Err(RecipeError::unknown_name("start", name, &valid));
        }
    };
    let kmeans = KMeans::new(bits).granularity(read_granularity(fields)?);
    read_correction(fields, Step::quantize(kmeans.start(start).importance(read_importance(fields)?)))
}

fn read_rounding(fields: &Fields<'_>) -> Result<Rounding, RecipeError> {
    let rounding = Rounding::from_name(fields.string("method")?.unwrap_or("nearest"))?;
    let (act_order, damping) = (fields.boolean("act_order")?, read_damping(fields)?);
    let iterations = fields.integer("iterations")?;
    let belongs = |key: &str, method: &str| {
        Err(RecipeError::value(fields.key(key), format!("belongs to the method `{method}`")))
    };
    match rounding {
        Rounding::Gptq { .. } if iterations.is_some() => belongs("iterations", "autoround"),
        Rounding::Gptq { act_order: named, .. } => {
            Ok(Rounding::Gptq { act_order: act_order.unwrap_or(named), damping })
        }
        _ if act_order.is_some() => belongs("act_order", "gptq"),
        _ if fields.table.contains_key("damping") => belongs("damping", "gptq"),
        _ if fields.table.contains_key("shrinkage") => belongs("shrinkage", "gptq"),
        Rounding::Learned { .. } => {
            let count = |n: i64| usize::try_from(n).ok().filter(|n| *n > 0);
            let iterations = iterations.map(|n| {
                count(n).ok_or_else(|| RecipeError::value(fields.key("iterations"), "must be 1 or more"))
            });
            Ok(Rounding::Learned { iterations: iterations.transpose()? })
        }
        _ if iterations.is_some() => belongs("iterations", "autoround"),
        rounding => Ok(rounding),
    }
}

fn read_inputs(fields: &Fields<'_>) -> Result<Option<InputQuantization>, RecipeError> {
    const SYMMETRIC: &str = "activation_symmetric";
    const OBSERVER: &str = "activation_observer";
    const PERCENTILE: &str = "activation_percentile";
    let only_with = |keys: &[&str], kind: &str| match keys.iter().find(|k| fields.table.contains_key(**k)) {
        Some(key) => Err(RecipeError::value(fields.key(key), format!("belongs to {kind}"))),
        None => Ok(()),
    };
    let symmetric = fields.boolean(SYMMETRIC)?.unwrap_or(true);
    match fields.string("activations")? {
        None => only_with(&[SYMMETRIC, OBSERVER, PERCENTILE], "`activations`").map(|()| None),
        Some("dynamic") => {
            only_with(&[OBSERVER, PERCENTILE], "activations = \"static\"")?;
            Ok(Some(InputQuantization::Dynamic { symmetric }))
        }
        Some("static") => {
            let observer = read_observer(fields, OBSERVER, PERCENTILE)?;
            Ok(Some(InputQuantization::Static { symmetric, observer }))
        }
        Some(name) => Err(RecipeError::unknown_name("activations", name, &["dynamic", "static"])),
    }
}

fn read_granularity(fields: &Fields<'_>) -> Result<Granularity, RecipeError> {
    let size = |key: &str, n: i64| {
        usize::try_from(n).ok().and_then(NonZeroUsize::new).ok_or_else(|| {
            RecipeError::value(fields.key(key), format!("{n} is no size; it must be 1 or more"))
        })
    };
    let group_size = fields.integer("group_size")?.map(|n| size("group_size", n)).transpose()?;
    let block = match fields.table.get("block") {
        None => None,
        Some(Value::Array(sides)) => match sides.as_slice() {
            [Value::Integer(rows), Value::Integer(cols)] => {
                Some((size("block", *rows)?, size("block", *cols)?))
            }
            _ => return Err(RecipeError::value(fields.key("block"), "must be [rows, columns]")),
        },
        Some(_) => return Err(RecipeError::value(fields.key("block"), "must be [rows, columns]")),
    };
    match (fields.string("strategy")?, group_size, block) {
        (None | Some("channel"), None, None) => Ok(Granularity::Channel),
        (Some("tensor"), None, None) => Ok(Granularity::Tensor),
        (None | Some("group"), Some(size), None) => Ok(Granularity::Group(size)),
        (None | Some("block"), None, Some((rows, cols))) => Ok(Granularity::Block(rows, cols)),
        (Some("group"), None, _) => fields.required("group_size", None),
        (Some("block"), _, None) => fields.required("block", None),
        (Some(name @ ("channel" | "tensor" | "group" | "block")), ..) => Err(RecipeError::value(
            &*fields.place,
            format!("strategy `{name}` has no such group_size or block"),
        )),
        (Some(name), ..) => {
            Err(RecipeError::unknown_name("strategy", name, &["tensor", "channel", "group", "block"]))
        }
        (None, Some(_), Some(_)) => Err(RecipeError::value(&*fields.place, "has both group_size and block")),
    }
}

fn read_observer(fields: &Fields<'_>, key: &str, percentile_key: &str) -> Result<Observer, RecipeError> {
    let percentile = fields.number(percentile_key)?;
    let observer = match fields.string(key)? {
        None if percentile.is_some() => Observer::Percentile(percentile.unwrap_or_default()),
        None => Observer::default(),
        Some("percentile") => Observer::Percentile(fields.required(percentile_key, percentile)?),
        Some(name) => Observer::from_name(name)?,
    };
    if percentile.is_some() && !matches!(observer, Observer::Percentile(_)) {
        return Err(RecipeError::value(fields.key(percentile_key), "belongs to the observer `percentile`"));
    }
    observer.check()?;
    Ok(observer)
}

/// A table and where it stands.
struct Fields<'a> {
    place: String,
    table: &'a Table,
}

impl<'a> Fields<'a> {
    fn key(&self, key: &str) -> String {
        format!("{}: `{key}`", self.place)
    }

    fn only(&self, valid: &[&str]) -> Result<(), RecipeError> {
        match self.table.keys().find(|key| !valid.contains(&key.as_str())) {
            Some(key) => Err(RecipeError::unknown_key(key, &self.place, valid)),
            None => Ok(()),
        }
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, RecipeError> {
        value.ok_or_else(|| RecipeError::value(&*self.place, format!("needs `{key}`")))
    }

    fn get<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, RecipeError> {
        self.table
            .get(key)
            .map(|value| {
                convert(value).ok_or_else(|| {
                    RecipeError::value(self.key(key), format!("must be {expected}, not {value}"))
                })
            })
            .transpose()
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>, RecipeError> {
        self.get(key, "a string", Value::as_str)
    }

    /// A number that is at least 1.
    fn at_least_one(&self, key: &str) -> Result<Option<NonZeroUsize>, RecipeError> {
        match self.integer(key)?.map(|n| usize::try_from(n).ok().and_then(NonZeroUsize::new)) {
            Some(None) => Err(RecipeError::value(self.key(key), "must be at least 1")),
            n => Ok(n.flatten()),
        }
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>, RecipeError> {
        self.get(key, "true or false", Value::as_bool)
    }

    fn integer(&self, key: &str) -> Result<Option<i64>, RecipeError> {
        self.get(key, "a whole number", Value::as_integer)
    }

    #[allow(clippy::cast_precision_loss)]
    fn number(&self, key: &str) -> Result<Option<f64>, RecipeError> {
        self.get(key, "a number", |v| v.as_float().or_else(|| v.as_integer().map(|i| i as f64)))
    }

    fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, RecipeError> {
        self.get(key, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    fn table(&self, key: &str) -> Result<Option<Fields<'a>>, RecipeError> {
        let table = self.get(key, "a table", Value::as_table)?;
        Ok(table.map(|table| Fields { place: format!("{}, `{key}`", self.place), table }))
    }
}
