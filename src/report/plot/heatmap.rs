use super::svg::{Drawing, text_width};
use crate::report::escape::shorten;

/// What one cell of a map shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mark {
    /// There is no such layer, or it could not be compared.
    Gone,
    /// Without error.
    Exact,
    /// Signal-to-noise ratio in dB.
    Noise(f64),
}

/// A grid of cells.
pub(super) struct Map {
    /// What stands above it.
    pub(super) title: String,
    pub(super) rows: Vec<String>,
    pub(super) columns: Vec<String>,
    /// Rows of cells, each with what is shown when the mouse is on it.
    pub(super) cells: Vec<Vec<(Mark, String)>>,
}

const WIDTH: f64 = 680.0;
const FONT: f64 = 12.0;
const BINS: usize = 9;
/// Room of the legend.
const LEGEND: f64 = 74.0;

/// Which colour a signal-to-noise ratio has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// Lower end of the worst bin, in dB.
    low: f64,
    /// Width of a bin.
    step: f64,
}

impl Scale {
    /// Nine bins of a whole number of dB that hold all values, as far as these lie within −10 to 60: what is off by less
    /// than a thousandth has the colour of the last.
    pub(super) fn over(values: impl IntoIterator<Item = f64>) -> Self {
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            let value = if value.is_nan() { -10.0 } else { value.clamp(-10.0, 60.0) };
            (min, max) = (min.min(value), max.max(value));
        }
        if min > max {
            (min, max) = (20.0, 40.0);
        }
        let steps = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let low = |step: f64| (min / step).floor() * step;
        let step = steps.into_iter().find(|step| low(*step) + BINS as f64 * step > max).unwrap_or(8.0);
        Self { low: low(step), step }
    }

    /// 0 for the least error, 8 for the most.
    pub(super) fn bin(self, db: f64) -> usize {
        let from_worst = ((db - self.low) / self.step).floor().clamp(0.0, (BINS - 1) as f64);
        BINS - 1 - if from_worst.is_nan() { 0 } else { from_worst as usize }
    }

    /// Where the bins meet, from the most error to the least: in dB.
    fn edges(self) -> impl Iterator<Item = f64> {
        (0..=BINS).map(move |i| self.low + i as f64 * self.step)
    }
}

/// One map with numbers in its cells as far as these have room.
pub(super) fn table(name: &str, title: String, map: &Map, scale: Scale) -> Drawing {
    let rows: Vec<String> = map.rows.iter().map(|row| shorten(row, 34)).collect();
    let columns: Vec<String> = map.columns.iter().map(|column| shorten(column, 26)).collect();
    let widest = |texts: &[String]| texts.iter().map(|t| text_width(t, FONT)).fold(0.0, f64::max);
    let (side, rise) = (widest(&rows) + 12.0, widest(&columns) * 0.707 + 14.0);
    // the last heading leans out of the grid
    let lean = columns.last().map_or(0.0, |c| text_width(c, FONT) * 0.707);
    let width = ((WIDTH - side - lean) / columns.len().max(1) as f64).clamp(12.0, 44.0);
    let height = if rows.len() > 40 { 14.0 } else { 20.0 };
    let total = (side + width * columns.len() as f64 + lean).max(WIDTH);
    let top = LEGEND + rise;
    let mut drawing = Drawing::new(name, title, total, top + height * rows.len() as f64 + 6.0);
    legend(&mut drawing, scale);
    for (i, column) in columns.iter().enumerate() {
        let x = side + width * (i as f64 + 0.5) + 4.0;
        drawing.rising("", 45, [x, top - 6.0], column);
    }
    for (r, (row, cells)) in rows.iter().zip(&map.cells).enumerate() {
        let y = top + height * r as f64;
        drawing.text("", "end", [side - 9.0, y + height / 2.0 + 4.0], row);
        for (c, (mark, hover)) in cells.iter().enumerate() {
            let x = side + width * c as f64;
            cell(&mut drawing, *mark, hover, scale, [x, y], [width - 1.5, height - 1.5]);
            if let Mark::Noise(db) = mark
                && width >= 26.0
                && height > 16.0
            {
                let class = format!("small on{}", scale.bin(*db));
                drawing.text(&class, "middle", [x + width / 2.0 - 0.75, y + 13.0], &format!("{db:.0}"));
            }
        }
    }
    drawing
}

/// Many small maps of the same rows and columns beside each other.
pub(super) fn panels(name: &str, title: String, maps: &[Map], scale: Scale) -> Drawing {
    const GAP: f64 = 22.0;
    let Some(first) = maps.first() else { return Drawing::new(name, title, WIDTH, LEGEND) };
    let side = first.rows.iter().map(|r| text_width(r, 10.0)).fold(0.0, f64::max) + 8.0;
    let columns: Vec<String> = first.columns.iter().map(|c| shorten(c, 16)).collect();
    let rise = columns.iter().map(|c| text_width(c, 10.0)).fold(0.0, f64::max) + 8.0;
    let count = columns.len().max(1) as f64;
    let least = side + 12.0 * count;
    let across = ((WIDTH + GAP) / (least + GAP)).floor().clamp(1.0, maps.len() as f64);
    // as many in the last line as in the others, if it can be
    let lines = (maps.len() as f64 / across).ceil();
    let across = (maps.len() as f64 / lines).ceil();
    let full = (WIDTH + GAP) / across - GAP;
    let width = ((full - side) / count).clamp(12.0, 20.0);
    let height = (300.0 / first.rows.len().max(1) as f64).clamp(7.0, 16.0);
    let (step_x, step_y) =
        (side + width * count + GAP, 24.0 + rise + height * first.rows.len() as f64 + 18.0);
    let total = (step_x * across - GAP).max(WIDTH);
    let mut drawing = Drawing::new(name, title, total, LEGEND + step_y * lines - 12.0);
    legend(&mut drawing, scale);
    let every = if first.rows.len() > 16 { 5 } else { 1 };
    for (i, map) in maps.iter().enumerate() {
        let (across_i, line) = (i % across as usize, i / across as usize);
        let (left, top) = (step_x * across_i as f64 + side, LEGEND + step_y * line as f64);
        let most = (width * count / (FONT * 0.62)) as usize;
        drawing.text("strong", "start", [left, top + 12.0], &shorten(&map.title, most));
        let grid = top + 24.0 + rise;
        for (c, column) in columns.iter().enumerate() {
            let x = left + width * (c as f64 + 0.5) + 3.0;
            drawing.rising("small muted", 90, [x, grid - 5.0], column);
        }
        for (r, cells) in map.cells.iter().enumerate() {
            let y = grid + height * r as f64;
            if r % every == 0 {
                drawing.text("small muted", "end", [left - 5.0, y + height / 2.0 + 3.5], &map.rows[r]);
            }
            for (c, (mark, hover)) in cells.iter().enumerate() {
                let x = left + width * c as f64;
                cell(&mut drawing, *mark, hover, scale, [x, y], [width - 1.0, height - 1.0]);
            }
        }
    }
    drawing
}

fn cell(
    drawing: &mut Drawing,
    mark: Mark,
    hover: &str,
    scale: Scale,
    [x, y]: [f64; 2],
    [width, height]: [f64; 2],
) {
    match mark {
        Mark::Noise(db) => {
            drawing.rect(&format!("e{}", scale.bin(db)), [x, y], [width, height], hover);
        }
        // an outline stands on the edge of its rectangle
        Mark::Exact => drawing.rect("exact", [x + 0.5, y + 0.5], [width - 1.0, height - 1.0], hover),
        Mark::Gone => drawing.rect("gone", [x + 0.5, y + 0.5], [width - 1.0, height - 1.0], hover),
    }
}

fn legend(drawing: &mut Drawing, scale: Scale) {
    const BIN: f64 = 40.0;
    let (left, top) = (20.0, 20.0);
    drawing.text("strong", "start", [0.0, 12.0], "signal-to-noise ratio of the weights, dB");
    drawing.text("muted", "start", [left + BIN * BINS as f64 + 34.0, 12.0], "below: relative error");
    for i in 0..BINS {
        let class = format!("e{}", BINS - 1 - i);
        drawing.rect(&class, [left + BIN * i as f64, top], [BIN - 1.0, 12.0], "");
    }
    for (i, db) in scale.edges().enumerate() {
        let x = left + BIN * i as f64 - 0.5;
        drawing.text("small", "middle", [x, top + 24.0], &format!("{db:.0}"));
        drawing.text("small muted", "middle", [x, top + 36.0], &relative(db));
    }
    let x = left + BIN * BINS as f64 + 34.0;
    drawing.rect("exact", [x, top + 0.5], [18.0, 11.0], "");
    drawing.text("muted", "start", [x + 25.0, top + 10.0], "exact");
    drawing.rect("gone", [x + 76.0, top + 0.5], [18.0, 11.0], "");
    drawing.text("muted", "start", [x + 101.0, top + 10.0], "not compared");
}

/// The relative error that a ratio in dB stands for, in percent.
fn relative(db: f64) -> String {
    let percent = 100.0 * 10f64.powf(-db / 20.0);
    // two digits
    let decimals = (1.0 - percent.log10().floor()).clamp(0.0, 4.0) as usize;
    let text = format!("{percent:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_what_they_say() {
        // 9 bins of 3 dB from 18 to 45
        let scale = Scale::over([18.5, 30.0, 44.0]);
        assert_eq!(scale, Scale { low: 18.0, step: 3.0 });
        assert_eq!([18.0, 20.99, 21.0, 44.9, -5.0, 99.0].map(|db| scale.bin(db)), [8, 8, 7, 0, 8, 0]);
        assert_eq!(scale.bin(f64::NAN), 8);
        assert_eq!(Scale::over([]).edges().count(), 10);
        // 40 dB are a hundredth, 20 dB a tenth
        assert_eq!([0.0, 20.0, 40.0, 26.0, 60.0].map(relative), ["100%", "10%", "1%", "5%", "0.1%"]);
    }
}
