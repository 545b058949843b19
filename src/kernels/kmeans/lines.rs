use super::super::level::Isa;
use super::fill_in;
use super::points::Points;

/// Entries of the table of dynamic programming at most, unless so many clusters need more.
const TABLE: usize = 1 << 20;

/// Points for each cluster that are enough to find its ends well.
const POINTS_A_CLUSTER: usize = 64;

/// Ends of clusters that one thread looks for.
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
        // where the last cluster before each end starts; the only one starts at 0
        let mut starts = vec![vec![0u32; points + 1]];
        for row in 2..=clusters {
            // ends before `row` have fewer points than clusters; of the last row only the last end is asked for
            let first = if row == clusters { points } else { row };
            let mut next = vec![f64::INFINITY; points + 1];
            let mut start = vec![0u32; points + 1];
            let fill = Fill { lines: self, isa, before: &costs, not_before: &starts[row - 2] };
            fill.run(first, &mut next[first..], &mut start[first..], [row - 1, points - 1]);
            costs = next;
            starts.push(start);
        }
        let mut ends = vec![points];
        for start in starts[1..].iter().rev() {
            let end = ends[ends.len() - 1];
            ends.push(start[end] as usize);
        }
        ends.reverse();
        ends
    }
}

/// One row of the table: where the last cluster starts moves right as its end does, and as there are more clusters before it.
#[derive(Clone, Copy)]
struct Fill<'a> {
    lines: &'a Lines,
    isa: Isa,
    before: &'a [f64],
    /// Where the last cluster starts at the earliest, for every end: where it starts when there is one cluster less.
    not_before: &'a [u32],
}

impl Fill<'_> {
    /// Fills costs and starts for ends from `first` on; the last cluster starts within `range`.
    fn run(self, first: usize, costs: &mut [f64], starts: &mut [u32], range: [usize; 2]) {
        let sums = [0, 1, 2].map(|sum| self.lines.sums[sum].as_slice());
        if costs.len() <= SPLIT {
            return fill_in(self.isa, self.before, sums, self.not_before, first, costs, starts, range);
        }
        // the one in the middle, then both sides at the same time
        let middle = costs.len() / 2;
        let (end, one) = (first + middle, middle..=middle);
        let (of_one, start_of_one) = (&mut costs[one.clone()], &mut starts[one]);
        fill_in(self.isa, self.before, sums, self.not_before, end, of_one, start_of_one, range);
        let start = starts[middle] as usize;
        let (costs_left, costs_right) = costs.split_at_mut(middle);
        let (starts_left, starts_right) = starts.split_at_mut(middle);
        rayon::join(
            || self.run(first, costs_left, starts_left, [range[0], start]),
            || self.run(end + 1, &mut costs_right[1..], &mut starts_right[1..], [start, range[1]]),
        );
    }
}
