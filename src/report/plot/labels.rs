//! Where the names of points stand, so that none covers another.

/// A rectangle: left, top, width, height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rect {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Rect {
    /// A square around a point.
    pub(super) fn around([x, y]: [f64; 2], radius: f64) -> Self {
        Self { x: x - radius, y: y - radius, width: 2.0 * radius, height: 2.0 * radius }
    }

    /// Area that two rectangles share.
    pub(super) fn overlap(&self, other: &Self) -> f64 {
        let width = (self.x + self.width).min(other.x + other.width) - self.x.max(other.x);
        let height = (self.y + self.height).min(other.y + other.height) - self.y.max(other.y);
        width.max(0.0) * height.max(0.0)
    }

    fn contains(&self, [x, y]: [f64; 2]) -> bool {
        (self.x..self.x + self.width).contains(&x) && (self.y..self.y + self.height).contains(&y)
    }

    /// The point of the rectangle that is nearest.
    pub(super) fn nearest(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        [x.clamp(self.x, self.x + self.width), y.clamp(self.y, self.y + self.height)]
    }
}

/// Distances from the point at which a label may stand.
const DISTANCES: [f64; 9] = [8.0, 11.0, 16.0, 23.0, 32.0, 43.0, 56.0, 72.0, 92.0];

/// Directions from the point, the preferred first.
const DIRECTIONS: [[f64; 2]; 12] = [
    [1.0, 0.0],
    [0.7, -0.7],
    [0.7, 0.7],
    [-1.0, 0.0],
    [-0.7, -0.7],
    [-0.7, 0.7],
    [0.0, -1.0],
    [0.0, 1.0],
    [0.9, -0.4],
    [0.9, 0.4],
    [-0.9, -0.4],
    [-0.9, 0.4],
];

/// Radius around a point that labels leave free.
const CLEARANCE: f64 = 6.0;

/// Room between labels.
const GAP: f64 = 1.5;

/// Places a label of each size near its point: each where it covers least given the others, again and again until none
/// moves. What is outside of `bounds` counts as covered; level and upright `lines` are crossed where that cannot be helped.
pub(super) fn place(
    points: &[[f64; 2]],
    sizes: &[[f64; 2]],
    bounds: Rect,
    lines: &[[[f64; 2]; 2]],
) -> Vec<Rect> {
    const ROUNDS: usize = 12;
    let mut placed: Vec<Option<Rect>> = vec![None; points.len()];
    // those at the edge have least choice
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|a, b| points[*b][0].total_cmp(&points[*a][0]));
    for _ in 0..ROUNDS {
        let mut moved = false;
        for &i in &order {
            let mut best: Option<(f64, Rect)> = None;
            for (rank, direction) in DIRECTIONS.iter().enumerate() {
                for distance in DISTANCES {
                    let rect = stand(points[i], *direction, distance, sizes[i]);
                    let cost = distance
                        + 0.4 * rank as f64
                        + disturbance(i, &rect, points, &placed)
                        + lines.iter().map(|line| crossed(&rect, line)).sum::<f64>()
                        + 50.0 * (rect.width * rect.height - rect.overlap(&bounds)).max(0.0);
                    if best.is_none_or(|(least, _)| cost < least) {
                        best = Some((cost, rect));
                    }
                }
            }
            let best = best.map(|(_, rect)| rect);
            moved |= placed[i] != best;
            placed[i] = best;
        }
        if !moved {
            break;
        }
    }
    placed.into_iter().map(|rect| rect.unwrap_or(Rect { x: 0.0, y: 0.0, width: 0.0, height: 0.0 })).collect()
}

/// The rectangle that is at least so far from the point, in this direction.
fn stand([x, y]: [f64; 2], [dx, dy]: [f64; 2], distance: f64, [width, height]: [f64; 2]) -> Rect {
    let along = |direction: f64, size: f64| match direction {
        d if d > 0.5 => d * distance,
        d if d < -0.5 => d * distance - size,
        d => d * distance - size / 2.0,
    };
    Rect { x: x + along(dx, width), y: y + along(dy, height), width, height }
}

/// How much of a level or upright line a label covers.
fn crossed(rect: &Rect, [a, b]: &[[f64; 2]; 2]) -> f64 {
    let line = Rect {
        x: a[0].min(b[0]) - 1.0,
        y: a[1].min(b[1]) - 1.0,
        width: (a[0] - b[0]).abs() + 2.0,
        height: (a[1] - b[1]).abs() + 2.0,
    };
    // a label that is wide covers more of a level line than a narrow one, but is no harder to read
    let covered = rect.overlap(&line);
    if covered > 0.0 { 9.0 + 0.1 * covered } else { 0.0 }
}

/// How much a label at this place covers, and how many others its leader crosses.
fn disturbance(own: usize, rect: &Rect, points: &[[f64; 2]], placed: &[Option<Rect>]) -> f64 {
    const SAMPLES: usize = 8;
    let wide = Rect {
        x: rect.x - GAP,
        y: rect.y - GAP,
        width: rect.width + 2.0 * GAP,
        height: rect.height + 2.0 * GAP,
    };
    let end = rect.nearest(points[own]);
    let leader = |other: &Rect| {
        let on = |i: usize| {
            let t = i as f64 / SAMPLES as f64;
            [0, 1].map(|k| points[own][k] + t * (end[k] - points[own][k]))
        };
        (1..SAMPLES).filter(|i| other.contains(on(*i))).count() as f64
    };
    let mut cost = 0.0;
    for (i, point) in points.iter().enumerate() {
        let marker = Rect::around(*point, CLEARANCE);
        cost += 20.0 * wide.overlap(&marker);
        if i == own {
            continue;
        }
        cost += 6.0 * leader(&marker);
        if let Some(other) = &placed[i] {
            cost += 60.0 * wide.overlap(other) + 15.0 * leader(other);
        }
    }
    cost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cover_neither_each_other_nor_points() {
        let bounds = Rect { x: 0.0, y: 0.0, width: 640.0, height: 400.0 };
        // a heap, a row, equal points and a corner
        let mut points: Vec<[f64; 2]> =
            (0..9).map(|i| [300.0 + f64::from(i % 3) * 14.0, 200.0 + f64::from(i / 3) * 12.0]).collect();
        points.extend((0..6).map(|i| [60.0 + f64::from(i) * 22.0, 60.0]));
        points.extend([[500.0, 300.0], [500.0, 300.0], [638.0, 398.0]]);
        let sizes: Vec<[f64; 2]> = (0..points.len()).map(|i| [40.0 + 5.0 * (i % 7) as f64, 13.0]).collect();
        let placed = place(&points, &sizes, bounds, &[]);
        for (i, a) in placed.iter().enumerate() {
            assert!(placed[..i].iter().all(|b| a.overlap(b) == 0.0), "{i}: {a:?}");
            assert!(points.iter().all(|p| !a.contains(*p)), "{i}: {a:?}");
            assert!((a.overlap(&bounds) - a.width * a.height).abs() < 1e-6, "{i}: {a:?}");
        }
        // alone, a label stands to the right at the least distance
        assert_eq!(
            place(&[[10.0, 100.0]], &[[50.0, 13.0]], bounds, &[]),
            [Rect { x: 18.0, y: 93.5, width: 50.0, height: 13.0 }]
        );
    }
}
