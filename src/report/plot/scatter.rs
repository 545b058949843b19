use super::axis::Axis;
use super::frame::Frame;
use super::labels::{Rect, place};
use super::svg::{Drawing, text_width};
use crate::evaluate::Better;
use crate::report::escape::shorten;
use crate::report::pareto::pareto_front;

/// A point of a scatter plot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    /// What stands beside it.
    pub(super) label: String,
    /// What is shown when the mouse is on it.
    pub(super) hover: String,
    pub(super) x: f64,
    pub(super) y: f64,
    /// Confidence interval of `y`.
    pub(super) interval: Option<[f64; 2]>,
    /// Whether the others were made from it.
    pub(super) reference: bool,
}

/// What the axes mean.
pub(super) struct Axes<'a> {
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    pub(super) better: Better,
}

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 430.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 48.0;
const FONT: f64 = 12.0;

/// From which ratio of the largest to the smallest value an axis is logarithmic.
const LOG_FROM: f64 = 6.0;
/// The same for a quality of which less is better, such as perplexity.
const LOG_FROM_QUALITY: f64 = 4.0;

/// Draws points, the Pareto front among them, and their names.
pub(super) fn scatter(name: &str, title: String, axes: &Axes<'_>, points: &[Point]) -> Drawing {
    let mut drawing = Drawing::new(name, title, WIDTH, HEIGHT);
    let x_axis = Axis::over(points.iter().map(|p| p.x), LOG_FROM, 8);
    let values = points.iter().flat_map(|p| {
        let [low, high] = p.interval.unwrap_or([p.y; 2]);
        [p.y, low, high]
    });
    let log_from = if axes.better == Better::Lower { LOG_FROM_QUALITY } else { f64::INFINITY };
    let y_axis = Axis::over(values, log_from, 7);
    let frame = Frame::new(x_axis, y_axis, WIDTH - RIGHT, [TOP, HEIGHT - BOTTOM]);
    let (left, right, bottom) = (frame.left, frame.right, frame.bottom);
    let (x, y) = (|value: f64| frame.x(value), |value: f64| frame.y(value));
    frame.draw(&mut drawing);
    drawing.text("strong", "end", [right, bottom + 38.0], axes.x);
    drawing.text("strong", "start", [0.0, 14.0], axes.y);
    legend(&mut drawing, points.iter().any(|p| p.interval.is_some()));

    let front = pareto_front(&points.iter().map(|p| [p.x, p.y]).collect::<Vec<_>>(), axes.better);
    let mut steps: Vec<[f64; 2]> =
        points.iter().zip(&front).filter(|(_, on)| **on).map(|(p, _)| [x(p.x), y(p.y)]).collect();
    // equal x only when equal y too
    steps.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let stairs = staircase(&steps, right);
    drawing.path("front", &stairs);
    let mut lines: Vec<[[f64; 2]; 2]> = stairs.windows(2).map(|pair| [pair[0], pair[1]]).collect();
    for point in points {
        if let Some([low, high]) = point.interval {
            let x = x(point.x);
            drawing.line("whisker", [x, y(low)], [x, y(high)]);
            lines.push([[x, y(low)], [x, y(high)]]);
            for end in [low, high] {
                drawing.line("whisker", [x - 3.0, y(end)], [x + 3.0, y(end)]);
            }
        }
    }
    let places: Vec<[f64; 2]> = points.iter().map(|p| [x(p.x), y(p.y)]).collect();
    let texts: Vec<String> = points.iter().map(|p| shorten(&p.label, 28)).collect();
    let sizes: Vec<[f64; 2]> = texts.iter().map(|t| [text_width(t, FONT), FONT + 2.0]).collect();
    let bounds = Rect { x: left, y: TOP - 18.0, width: right - left + 10.0, height: bottom - TOP + 14.0 };
    let labels = place(&places, &sizes, bounds, &lines);
    for (place, label) in places.iter().zip(&labels) {
        let end = label.nearest(*place);
        if (end[0] - place[0]).hypot(end[1] - place[1]) > 14.0 {
            drawing.line("leader", *place, end);
        }
    }
    for ((point, place), on) in points.iter().zip(&places).zip(&front) {
        let fill = if *on { "on" } else { "off" };
        if point.reference {
            let class = if *on { "source" } else { "source off" };
            drawing.diamond(class, *place, 6.0, &point.hover);
        } else {
            drawing.circle(fill, *place, 4.2, &point.hover);
        }
    }
    for ((label, text), place) in labels.iter().zip(&texts).zip(&places) {
        // towards the point, for the width is only estimated
        let (anchor, x) = if label.x >= place[0] {
            ("start", label.x)
        } else if label.x + label.width <= place[0] {
            ("end", label.x + label.width)
        } else {
            ("middle", label.x + label.width / 2.0)
        };
        drawing.text("name", anchor, [x, label.y + FONT - 1.0], text);
    }
    let on: Vec<&str> =
        points.iter().zip(&front).filter(|(_, on)| **on).map(|(p, _)| p.label.as_str()).collect();
    drawing.description = format!(
        "{} points of {} against {}. On the Pareto front: {}.",
        points.len(),
        axes.y,
        axes.x,
        on.join(", ")
    );
    drawing
}

/// The least that can be had up to every x: level until the next point, then straight to it.
fn staircase(front: &[[f64; 2]], right: f64) -> Vec<[f64; 2]> {
    let mut path: Vec<[f64; 2]> = Vec::new();
    for point in front {
        if let Some(last) = path.last().copied() {
            path.push([point[0], last[1]]);
        }
        path.push(*point);
    }
    path.extend(front.last().map(|last| [right, last[1]]));
    path
}

/// What the marks mean, in one line above the plot.
fn legend(drawing: &mut Drawing, intervals: bool) {
    let y = 37.0;
    let mut x = 6.0;
    let mut entry = |drawing: &mut Drawing, text: &str, mark: &dyn Fn(&mut Drawing, f64)| {
        mark(drawing, x);
        drawing.text("muted", "start", [x + 10.0, y + 4.0], text);
        x += 10.0 + text_width(text, FONT) + 16.0;
    };
    entry(drawing, "source", &|d, x| d.diamond("source", [x, y], 5.0, ""));
    entry(drawing, "on the Pareto front", &|d, x| d.circle("on", [x, y], 4.2, ""));
    entry(drawing, "beaten by another in both", &|d, x| d.circle("off", [x, y], 4.2, ""));
    if intervals {
        entry(drawing, "95 % interval", &|d, x| {
            d.line("whisker", [x, y - 6.0], [x, y + 6.0]);
            for end in [y - 6.0, y + 6.0] {
                d.line("whisker", [x - 3.0, end], [x + 3.0, end]);
            }
        });
    }
}
