use super::super::level::Isa;
use super::best_start_in;
use super::points::Points;

/// Entries of the table of dynamic programming at most, unless so many clusters need more.
const TABLE: usize = 1 << 20;

/// Points for each cluster that are enough to find its ends well.
const POINTS_A_CLUSTER: usize = 64;

/// Ends of clusters below which one thread looks for them.
const SPLIT: usize = 1 << 12;

/// Points over which the best clusters are found exactly.
pub(super) fn most_points(clusters: usize) -> usize {
    (TABLE / clusters).max(POINTS_A_CLUSTER * clusters)
}

/// Sums over the points before each end: what the cost of a run of points follows from.
pub(super) struct Lines {
    /// Of weights, weighted positions, weighted squares.
    sums: [Vec<f64>; 3],
}

impl Lines {
    pub(super) fn of(points: &Points) -> Self {
        // around the middle, sums lose the least
        let middle = points.mean(0..points.len());
        let mut sums = [vec![0.0], vec![0.0], vec![0.0]];
        let mut total = [0.0; 3];
        for (x, weight) in points.iter() {
            let x = x - middle;
            for (total, term) in total.iter_mut().zip([weight, weight * x, weight * x * x]) {
                *total += term;
            }
            for (sums, total) in sums.iter_mut().zip(total) {
                sums.push(total);
            }
        }
        Self { sums }
    }

    fn at(&self, end: usize) -> [f64; 3] {
        [0, 1, 2].map(|sum| self.sums[sum][end])
    }

    /// The ends of the `clusters` runs of points with the least cost; there must be at least as many points.
    pub(super) fn clusters(&self, clusters: usize) -> Vec<usize> {
        let points = self.sums[0].len() - 1;
        let isa = Isa::current();
        // the least cost of the points before each end in as many clusters as there have been rows
        let mut costs: Vec<f64> = (0..=points)
            .map(|end| {
                let [weight, sum, squares] = self.at(end);
                if end == 0 { 0.0 } else { squares - sum * sum / weight }
            })
            .collect();
        let mut starts = Vec::with_capacity(clusters);
        for row in 2..=clusters {
            // ends before `row` have fewer points than clusters
            let mut next = vec![f64::INFINITY; points + 1];
            let mut start = vec![0u32; points + 1];
            let fill = Fill { lines: self, isa, before: &costs, least: row - 1 };
            fill.run(row, &mut next[row..], &mut start[row..], [row - 1, points - 1]);
            costs = next;
            starts.push(start);
        }
        let mut ends = vec![points];
        for start in starts.iter().rev() {
            let end = ends[ends.len() - 1];
            ends.push(start[end] as usize);
        }
        ends.reverse();
        ends
    }
}

/// One row of the table: where the last cluster starts moves right as its end does.
#[derive(Clone, Copy)]
struct Fill<'a> {
    lines: &'a Lines,
    isa: Isa,
    before: &'a [f64],
    /// Where the last cluster starts at the earliest.
    least: usize,
}

impl Fill<'_> {
    /// Fills costs and starts for ends from `first` on; the last cluster starts within `range`.
    fn run(self, first: usize, costs: &mut [f64], starts: &mut [u32], range: [usize; 2]) {
        if costs.is_empty() {
            return;
        }
        let middle = costs.len() / 2;
        let end = first + middle;
        let (low, high) = (range[0].max(self.least), range[1].min(end - 1));
        let sums = [0, 1, 2].map(|sum| &self.lines.sums[sum][low..=high]);
        let (cost, at) = best_start_in(self.isa, &self.before[low..=high], sums, self.lines.at(end));
        let start = low + at;
        costs[middle] = cost;
        starts[middle] = start as u32;
        let (costs_left, costs_right) = costs.split_at_mut(middle);
        let (starts_left, starts_right) = starts.split_at_mut(middle);
        let left = costs_left.len();
        let mut go_left = || self.run(first, costs_left, starts_left, [range[0], start]);
        let mut go_right =
            || self.run(end + 1, &mut costs_right[1..], &mut starts_right[1..], [start, range[1]]);
        if left > SPLIT {
            rayon::join(go_left, go_right);
        } else {
            go_left();
            go_right();
        }
    }
}
