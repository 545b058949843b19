use std::collections::{BTreeSet, HashMap};

use super::blocks::{block_and_kind, rank};
use super::heatmap::{self, Map, Mark, Scale};
use super::scatter::{Axes, Point, scatter};
use super::svg::Drawing;
use crate::evaluate::{Better, Score};
use crate::report::number::{byte_unit, bytes, percent, with_unit};
use crate::report::{Comparison, LayerError, Variant, metric};

/// Most rows of a map; those with the largest errors stay.
const MOST_ROWS: usize = 120;

impl Comparison<'_> {
    /// The plots of the report as files by themselves: name and contents.
    pub fn plots(&self) -> Vec<(String, String)> {
        let references: Vec<usize> = self.references().map(|(place, _)| place).collect();
        let drawings = references.iter().flat_map(|place| figures_of(self, *place));
        drawings.map(|drawing| (format!("{}.svg", drawing.name), drawing.file())).collect()
    }
}

/// What a variant is called beside its reference: the name without the reference's at its start.
fn short_name<'a>(variant: &'a Variant, reference: &Variant) -> &'a str {
    let rest = variant.name.strip_prefix(reference.name.as_str());
    let rest = rest.and_then(|rest| rest.strip_prefix(['-', '_', '.', ' ']));
    rest.filter(|rest| !rest.is_empty()).unwrap_or(&variant.name)
}

/// The plots of one reference and its variants.
pub(in crate::report) fn figures_of(comparison: &Comparison<'_>, place: usize) -> Vec<Drawing> {
    let reference = &comparison.variants[place];
    let variants: Vec<&Variant> = comparison.variants_of(place).map(|(_, variant)| variant).collect();
    if variants.is_empty() {
        return Vec::new();
    }
    // several references have figures each
    let number = comparison.references().take_while(|(other, _)| *other != place).count();
    let suffix = if comparison.references().count() > 1 { format!("-{}", number + 1) } else { String::new() };
    let mut drawings = Vec::new();
    if let Some(quality) = reference.quality() {
        let largest = std::iter::once(&reference).chain(&variants).map(|v| v.file_bytes).max().unwrap_or(1);
        let (unit, scale) = byte_unit(largest as f64);
        let of_size =
            |variant: &Variant| Some((variant.file_bytes as f64 / scale, bytes(variant.file_bytes as f64)));
        drawings.extend(against(
            &format!("quality-size{suffix}"),
            ("file size", &format!("size of the files, {unit}")),
            quality,
            reference,
            &variants,
            of_size,
        ));
        if let Some(latency) = reference.scores.iter().find(|score| metric::is_latency(score)) {
            let of_time = |variant: &Variant| {
                let own = variant.same(latency)?;
                Some((own.value, with_unit(own.value, &own.unit)))
            };
            let title = metric::title(&latency.metric);
            drawings.extend(against(
                &format!("quality-latency{suffix}"),
                (&title, &format!("{title}, {}", latency.unit)),
                quality,
                reference,
                &variants,
                of_time,
            ));
        }
    }
    drawings.extend(maps(&suffix, reference, &variants));
    drawings
}

/// Quality against something of which less is better.
fn against(
    name: &str,
    (what, axis): (&str, &str),
    quality: &Score,
    reference: &Variant,
    variants: &[&Variant],
    of: impl Fn(&Variant) -> Option<(f64, String)>,
) -> Option<Drawing> {
    let point = |variant: &Variant, is_reference: bool| {
        let score = variant.same(quality)?;
        let (x, text) = of(variant)?;
        let [low, high] = score.interval;
        let wide = low.is_finite() && high.is_finite() && low < high;
        let value = with_unit(score.value, &score.unit);
        Some(Point {
            label: if is_reference {
                variant.name.clone()
            } else {
                short_name(variant, reference).to_owned()
            },
            hover: format!("{}: {value}, {text}", variant.name),
            x,
            y: score.value,
            interval: wide.then_some(score.interval),
            reference: is_reference,
        })
    };
    let points: Vec<Point> = std::iter::once(point(reference, true))
        .chain(variants.iter().map(|variant| point(variant, false)))
        .flatten()
        .filter(|p| p.x.is_finite() && p.y.is_finite())
        .collect();
    let title = metric::title(&quality.metric);
    let unit = if quality.unit.is_empty() { String::new() } else { format!(", {}", quality.unit) };
    let direction = if quality.better == Better::Lower { " (less is better)" } else { "" };
    let axes = Axes { x: axis, y: &format!("{title}{unit}{direction}"), better: quality.better };
    let heading = format!("{}: {title} against {what}", reference.name);
    (points.len() > 1).then(|| scatter(name, heading, &axes, &points))
}

/// The error of every layer: blocks of a transformer in a panel for every variant, other layers in one table.
fn maps(suffix: &str, reference: &Variant, variants: &[&Variant]) -> Vec<Drawing> {
    let layers: Vec<HashMap<&str, &LayerError>> = variants
        .iter()
        .map(|v| v.layers.iter().map(|layer| (layer.name.as_str(), layer)).collect())
        .collect();
    // in the order of the variant that has most
    let all = variants.iter().max_by_key(|v| v.layers.len()).map(|v| v.layers.as_slice()).unwrap_or_default();
    let errors = variants.iter().flat_map(|v| &v.layers).filter(|layer| layer.errors.relative != 0.0);
    let scale = Scale::over(errors.map(decibels));
    let names: Vec<String> = variants.iter().map(|v| short_name(v, reference).to_owned()).collect();
    let places: HashMap<&str, (usize, String)> =
        all.iter().filter_map(|layer| Some((layer.name.as_str(), block_and_kind(&layer.name)?))).collect();
    let places: HashMap<&str, (usize, String)> = places
        .into_iter()
        .filter(|(name, _)| all.iter().any(|l| l.name == *name && l.class == "linear"))
        .collect();
    let mut drawings = Vec::new();
    if !places.is_empty() {
        drawings.push(block_maps(suffix, reference, variants, &names, all, &places, scale));
    }
    let changed = |name: &str| layers.iter().any(|of| of.get(name).is_none_or(|l| l.errors.relative != 0.0));
    let is_small = |layer: &LayerError| matches!(layer.class.as_str(), "norm" | "bias" | "other");
    let mut rows: Vec<&LayerError> = all
        .iter()
        .filter(|l| !places.contains_key(l.name.as_str()) && changed(&l.name))
        .filter(|l| places.is_empty() || !is_small(l))
        .collect();
    let left_out = rows.len().saturating_sub(MOST_ROWS);
    if left_out > 0 {
        let worst = |name: &str| {
            let errors = layers.iter().filter_map(|of| Some(of.get(name)?.errors.relative));
            errors.fold(0.0, f64::max)
        };
        let mut order: Vec<f64> = rows.iter().map(|layer| worst(&layer.name)).collect();
        order.sort_by(|a, b| b.total_cmp(a));
        rows.retain(|layer| worst(&layer.name) >= order[MOST_ROWS - 1]);
        rows.truncate(MOST_ROWS);
    }
    if rows.is_empty() {
        return drawings;
    }
    let cells = rows
        .iter()
        .map(|row| {
            let of = layers.iter().zip(variants);
            of.map(|(of, variant)| mark(of.get(row.name.as_str()).copied(), &row.name, variant)).collect()
        })
        .collect();
    let map = Map {
        title: String::new(),
        rows: rows.iter().map(|l| l.name.strip_suffix(".weight").unwrap_or(&l.name).to_owned()).collect(),
        columns: names,
        cells,
    };
    let title = format!(
        "{}: error of {}",
        reference.name,
        if places.is_empty() { "every layer" } else { "other layers" }
    );
    let mut drawing = heatmap::table(&format!("layers{suffix}"), title, &map, scale);
    drawing.description = describe(variants);
    drawing.caption = match left_out {
        0 => "Tensors that are exact in every variant are left out.".to_owned(),
        n => format!("The {MOST_ROWS} layers with the largest errors; {n} others are in the tables below."),
    };
    drawings.push(drawing);
    drawings
}

fn block_maps(
    suffix: &str,
    reference: &Variant,
    variants: &[&Variant],
    names: &[String],
    all: &[LayerError],
    places: &HashMap<&str, (usize, String)>,
    scale: Scale,
) -> Drawing {
    let blocks: BTreeSet<usize> = places.values().map(|(block, _)| *block).collect();
    let mut kinds: Vec<&str> = Vec::new();
    for (_, kind) in all.iter().filter_map(|layer| places.get(layer.name.as_str())) {
        if !kinds.contains(&kind.as_str()) {
            kinds.push(kind);
        }
    }
    kinds.sort_by_key(|kind| rank(kind));
    let maps: Vec<Map> = variants
        .iter()
        .zip(names)
        .map(|(variant, name)| {
            let mut of: HashMap<(usize, &str), &LayerError> = HashMap::new();
            for layer in &variant.layers {
                if let Some((block, kind)) = places.get(layer.name.as_str()) {
                    let worst = of.entry((*block, kind.as_str())).or_insert(layer);
                    if layer.errors.relative > worst.errors.relative {
                        *worst = layer;
                    }
                }
            }
            let cell = |block: usize, kind: &str| {
                let what = format!("block {block}, {kind}");
                mark(of.get(&(block, kind)).copied(), &what, variant)
            };
            Map {
                title: name.clone(),
                rows: blocks.iter().map(ToString::to_string).collect(),
                columns: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
                cells: blocks.iter().map(|b| kinds.iter().map(|kind| cell(*b, kind)).collect()).collect(),
            }
        })
        .collect();
    let title = format!("{}: error of the linear layers of every block", reference.name);
    let mut drawing = heatmap::panels(&format!("blocks{suffix}"), title, &maps, scale);
    drawing.description = describe(variants);
    drawing.caption = String::from(
        "A panel for every variant: blocks from the input at the top to the output, and the layers of each.",
    );
    drawing
}

/// Signal-to-noise ratio of a layer that has an error; without end where it is not known.
fn decibels(layer: &LayerError) -> f64 {
    layer.errors.sqnr_db.unwrap_or(f64::NEG_INFINITY)
}

fn mark(layer: Option<&LayerError>, name: &str, variant: &Variant) -> (Mark, String) {
    let Some(layer) = layer else { return (Mark::Gone, format!("{name}, {}: not compared", variant.name)) };
    if layer.errors.relative == 0.0 {
        return (Mark::Exact, format!("{name}, {}: exact, {}", variant.name, layer.after));
    }
    let db = decibels(layer);
    let relative = percent(layer.errors.relative);
    (
        Mark::Noise(db),
        format!("{name}, {}: {db:.1} dB, relative error {relative}, {}", variant.name, layer.after),
    )
}

/// The worst layer of every variant, in words.
fn describe(variants: &[&Variant]) -> String {
    let worst = variants.iter().filter_map(|v| {
        let worst = v.worst_layer.as_ref()?;
        Some(format!(
            "{}: {} with a relative error of {}",
            v.name,
            worst.name,
            percent(worst.errors.relative)
        ))
    });
    format!("Worst layer of every variant. {}.", worst.collect::<Vec<_>>().join("; "))
}
