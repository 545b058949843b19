use super::number::{percent, signed, with_unit};
use super::{Align, Cell, Comparison, Table, Variant, metric};
use crate::evaluate::Score;

const NONE: &str = "–";

impl Comparison<'_> {
    /// One row per checkpoint: sizes, the first score of quality and what was lost of it, time, cost, the worst layer.
    ///
    /// Columns that no checkpoint has anything for are left out.
    pub fn table(&self) -> Table {
        let first = |wanted: fn(&Score) -> bool| {
            self.variants.iter().find_map(|v| v.scores.iter().find(|s| wanted(s))).cloned()
        };
        let quality = self.variants.iter().find_map(Variant::quality).cloned();
        let resources = [
            first(|s| s.metric == "latency_p50"),
            first(|s| metric::unit_of_throughput(s).is_some()),
            first(|s| s.metric == metric::PEAK_MEMORY),
        ];
        let resources: Vec<Score> = resources.into_iter().flatten().collect();
        let mut headings = vec![
            ("model".to_owned(), Align::Left),
            ("file bytes".to_owned(), Align::Right),
            ("smaller".to_owned(), Align::Right),
            ("weights smaller".to_owned(), Align::Right),
        ];
        if let Some(quality) = &quality {
            headings.push((metric::title(&quality.metric), Align::Right));
            headings.push(("drop".to_owned(), Align::Right));
        }
        for score in &resources {
            let title = metric::unit_of_throughput(score)
                .map_or_else(|| metric::title(&score.metric), |unit| format!("{unit}/s"));
            headings.push((title, Align::Right));
        }
        if let Some(pricing) = &self.pricing {
            headings.push((format!("{} per million", pricing.currency), Align::Right));
        }
        headings.push(("worst layer".to_owned(), Align::Left));
        headings.push(("rel. error".to_owned(), Align::Right));
        let mut table = Table::new(headings.iter().map(|(heading, align)| (heading.as_str(), *align)));
        for variant in &self.variants {
            let mut cells: Vec<Cell> = vec![
                variant.name.clone().into(),
                variant.file_bytes.into(),
                format!("{:.2}×", variant.file_ratio).into(),
                format!("{:.2}×", variant.weight_ratio).into(),
            ];
            if let Some(quality) = &quality {
                let own = variant.same(quality);
                cells.push(own.map_or(NONE.into(), |s| with_unit(s.value, &s.unit).into()));
                let lost = own.and_then(|s| Some(signed(variant.drop_of(s)?, &s.unit)));
                cells.push(lost.map_or(NONE.into(), Cell::from));
            }
            for score in &resources {
                let own = variant.same(score).map(|s| match metric::unit_of_throughput(s) {
                    Some(_) => with_unit(s.value, ""),
                    None => with_unit(s.value, &s.unit),
                });
                cells.push(own.map_or(NONE.into(), Cell::from));
            }
            if self.pricing.is_some() {
                let cost = variant.cost.as_ref().map(|cost| super::number::money(cost.per_million));
                cells.push(cost.map_or(NONE.into(), Cell::from));
            }
            let worst = variant.worst_layer.as_ref();
            cells.push(
                match (worst.map_or(NONE, |w| w.name.as_str()), variant.not_compared.len()) {
                    (name, 0) => name.to_owned(),
                    (name, n) => format!("{name}; {n} not compared"),
                }
                .into(),
            );
            cells.push(worst.map_or("0".to_owned(), |w| percent(w.errors.relative)).into());
            table.row(cells);
        }
        table
    }
}
