use super::axis::Axis;
use super::frame::Frame;
use super::svg::{Drawing, text_width};

/// Several curves over the same axis.
///
/// ```
/// use tersor::report::{Curve, LinePlot};
///
/// let curve = |name: &str, group, points: &[[f64; 2]]| Curve { name: name.into(), group, points: points.to_vec() };
/// let plot = LinePlot {
///     title: "Accuracy against sparsity".into(),
///     x: "zeros, %".into(),
///     y: "accuracy, %".into(),
///     curves: vec![
///         curve("magnitude", (0, 0), &[[50.0, 97.66], [90.0, 78.15]]),
///         curve("magnitude, by shape", (0, 1), &[[50.0, 97.65], [90.0, 94.83]]),
///     ],
/// };
/// assert!(plot.to_svg("sparsity").starts_with("<svg"));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LinePlot {
    /// What is to be seen.
    pub title: String,
    /// What the horizontal axis means, with its unit.
    pub x: String,
    /// What the vertical axis means, with its unit.
    pub y: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// One curve of a [`LinePlot`].
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What stands at its end.
    pub name: String,
    /// Curves of the same first number share a colour (of eight), those of the same second a pattern (of three).
    pub group: (usize, usize),
    /// Points from left to right.
    pub points: Vec<[f64; 2]>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 450.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 48.0;
const NAME_FONT: f64 = 12.0;
/// Height of a name at the right.
const LINE: f64 = 16.0;
const COLOURS: usize = 8;
const PATTERNS: usize = 3;

impl LinePlot {
    /// The plot as a file by itself; `name` tells its parts from those of other plots on a page.
    pub fn to_svg(&self, name: &str) -> String {
        self.draw(name).file()
    }

    fn draw(&self, name: &str) -> Drawing {
        let mut drawing = Drawing::new(name, self.title.clone(), WIDTH, HEIGHT);
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let x_axis = Axis::over(points().map(|p| p[0]), f64::INFINITY, 11);
        let y_axis = Axis::over(points().map(|p| p[1]), f64::INFINITY, 9);
        let widest = self.curves.iter().map(|curve| text_width(&curve.name, NAME_FONT)).fold(0.0, f64::max);
        let names = WIDTH - widest;
        let frame = Frame::new(x_axis, y_axis, names - 40.0, [TOP, HEIGHT - BOTTOM]);
        let (right, bottom) = (frame.right, frame.bottom);
        frame.draw(&mut drawing);
        drawing.text("strong", "start", [0.0, 14.0], &self.title);
        drawing.text("muted", "start", [0.0, 34.0], &self.y);
        drawing.text("muted", "end", [right, bottom + 38.0], &self.x);

        let class = |curve: &Curve| format!("c{} d{}", curve.group.0 % COLOURS, curve.group.1 % PATTERNS);
        for curve in &self.curves {
            let places: Vec<[f64; 2]> = curve.points.iter().map(|p| [frame.x(p[0]), frame.y(p[1])]).collect();
            drawing.path(&format!("curve {}", class(curve)), &places);
            for (place, point) in places.iter().zip(&curve.points) {
                let hover = format!("{}: {} at {}", curve.name, point[1], point[0]);
                drawing.circle(&format!("dot c{}", curve.group.0 % COLOURS), *place, 2.6, &hover);
            }
        }
        // names in the order of the ends, each at its end or as near as the others leave room
        let mut ends: Vec<([f64; 2], &Curve)> = self
            .curves
            .iter()
            .filter_map(|curve| curve.points.last().map(|p| ([frame.x(p[0]), frame.y(p[1])], curve)))
            .collect();
        ends.sort_by(|a, b| a.0[1].total_cmp(&b.0[1]));
        let heights = spread(&ends.iter().map(|(end, _)| end[1]).collect::<Vec<_>>(), LINE, [TOP, bottom]);
        for ((end, curve), height) in ends.iter().zip(heights) {
            drawing.path(
                &format!("tie c{}", curve.group.0 % COLOURS),
                &[[end[0] + 5.0, end[1]], [names - 26.0, height]],
            );
            drawing.line(&format!("curve {}", class(curve)), [names - 26.0, height], [names - 6.0, height]);
            drawing.text("name", "start", [names, height + 4.0], &curve.name);
        }
        let list: Vec<&str> = ends.iter().map(|(_, curve)| curve.name.as_str()).collect();
        drawing.description = format!(
            "{} curves of {} against {}; from the highest end to the lowest: {}.",
            list.len(),
            self.y,
            self.x,
            list.join(", ")
        );
        drawing
    }
}

/// Ascending heights at least so far apart and within the limits, if there is room, as near to the wanted ones as pushing them apart
/// from the top and back from the bottom leaves them.
fn spread(wanted: &[f64], apart: f64, [low, high]: [f64; 2]) -> Vec<f64> {
    let mut heights = wanted.to_vec();
    let mut least = low;
    for height in &mut heights {
        *height = height.max(least);
        least = *height + apart;
    }
    let mut most = high;
    for height in heights.iter_mut().rev() {
        *height = height.min(most);
        most = *height - apart;
    }
    heights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_apart() {
        assert_eq!(spread(&[10.0, 50.0, 90.0], 16.0, [0.0, 100.0]), [10.0, 50.0, 90.0]);
        assert_eq!(spread(&[10.0, 11.0, 90.0], 16.0, [0.0, 100.0]), [10.0, 26.0, 90.0]);
        assert_eq!(spread(&[95.0, 96.0, 97.0], 16.0, [0.0, 100.0]), [68.0, 84.0, 100.0]);
        assert!(spread(&[], 16.0, [0.0, 100.0]).is_empty());
    }

    #[test]
    fn every_point_of_every_curve_is_drawn() {
        let curve = |name: &str, points: &[[f64; 2]]| Curve {
            name: name.into(),
            group: (0, 0),
            points: points.to_vec(),
        };
        let curves =
            vec![curve("a <b>", &[[0.0, 1.0], [1.0, 2.0]]), curve("c", &[[0.5, 1.5]]), curve("d", &[])];
        let plot = LinePlot { title: "t".into(), x: "x".into(), y: "y".into(), curves };
        let svg = plot.to_svg("p");
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a &lt;b&gt;") && !svg.contains("<b>"));
        assert!(svg.contains("from the highest end to the lowest: a &lt;b&gt;, c."));
    }
}
