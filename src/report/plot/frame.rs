use super::axis::Axis;
use super::svg::{Drawing, text_width};

/// Height of the numbers along the axes.
const FONT: f64 = 12.0;

/// Two axes, and the part of a drawing that they span.
pub(super) struct Frame {
    x_axis: Axis,
    y_axis: Axis,
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

impl Frame {
    /// A frame that leaves room for the numbers at its left.
    pub(super) fn new(x_axis: Axis, y_axis: Axis, right: f64, [top, bottom]: [f64; 2]) -> Self {
        let widest = y_axis.ticks.iter().map(|t| text_width(&y_axis.label(*t), FONT)).fold(0.0, f64::max);
        Self { x_axis, y_axis, left: widest + 14.0, right, top, bottom }
    }

    /// Where a value stands from left to right.
    pub(super) fn x(&self, value: f64) -> f64 {
        self.left + self.x_axis.at(value) * (self.right - self.left)
    }

    /// Where a value stands from top to bottom.
    pub(super) fn y(&self, value: f64) -> f64 {
        self.bottom - self.y_axis.at(value) * (self.bottom - self.top)
    }

    /// Draws the axes with their numbers, and lines to read heights by.
    pub(super) fn draw(&self, drawing: &mut Drawing) {
        let Self { x_axis, y_axis, left, right, bottom, .. } = self;
        for tick in &y_axis.ticks {
            let y = self.y(*tick);
            drawing.line("grid", [*left, y], [*right, y]);
            drawing.text("muted", "end", [left - 9.0, y + 4.0], &y_axis.label(*tick));
        }
        drawing.line("axis", [*left, *bottom], [*right, *bottom]);
        for tick in &x_axis.ticks {
            let x = self.x(*tick);
            drawing.line("axis", [x, *bottom], [x, bottom + 5.0]);
            drawing.text("muted", "middle", [x, bottom + 19.0], &x_axis.label(*tick));
        }
    }
}
