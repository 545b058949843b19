//! What a sample says about the value behind it.

/// The quantile of the normal distribution that leaves 2.5 % above it.
const Z: f64 = 1.959_963_984_540_054;

/// A measured value and its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub(super) value: f64,
    pub(super) interval: [f64; 2],
}

impl Estimate {
    /// The estimate of `f(x)`, for an increasing `f`.
    pub(super) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { value: f(self.value), interval: self.interval.map(f) }
    }

    /// The estimate of `f(x)`, for a decreasing `f`.
    pub(super) fn map_down(self, f: impl Fn(f64) -> f64) -> Self {
        let [low, high] = self.interval.map(&f);
        Self { value: f(self.value), interval: [high, low] }
    }

    /// An interval that ends where values end.
    pub(super) fn clamp(self, low: f64, high: f64) -> Self {
        Self { value: self.value, interval: self.interval.map(|end| end.clamp(low, high)) }
    }
}

/// Mean of values that come in clusters, such as tokens in windows, with the standard error that holds however values
/// of one cluster depend on each other (Liang & Zeger 1986), times √(G/(G−1)) for G clusters, and Student's t with
/// G − 1 degrees of freedom. The values of a single cluster are taken as independent.
///
/// There must be at least two values.
pub(super) fn clustered_mean(clusters: &[Vec<f64>]) -> Estimate {
    let (value, error, degrees) = mean_and_error(clusters);
    let half = student_t(degrees) * error;
    Estimate { value, interval: [value - half, value + half] }
}

/// Share of ones among zeros and ones that come in clusters: Wilson's interval (1927) for as many independent values as
/// would give the standard error of [`clustered_mean`] (Kish's effective sample size), but no more than there are.
pub(super) fn clustered_share(clusters: &[Vec<f64>]) -> Estimate {
    let count = clusters.iter().map(Vec::len).sum::<usize>() as f64;
    let (share, error, _) = mean_and_error(clusters);
    let effective = if error > 0.0 { (share * (1.0 - share) / (error * error)).min(count) } else { count };
    Estimate { value: share, interval: wilson(share, effective) }
}

/// Mean, its standard error, and the error's degrees of freedom.
fn mean_and_error(clusters: &[Vec<f64>]) -> (f64, f64, usize) {
    let count: usize = clusters.iter().map(Vec::len).sum();
    let mean = clusters.iter().flatten().sum::<f64>() / count as f64;
    let deviation = |values: &[f64]| values.iter().map(|x| x - mean).sum::<f64>().powi(2);
    let (squares, groups): (f64, usize) = match clusters {
        [single] => (single.chunks(1).map(deviation).sum(), count),
        _ => (clusters.iter().map(|values| deviation(values)).sum(), clusters.len()),
    };
    let degrees = groups - 1;
    (mean, (squares * groups as f64 / degrees as f64).sqrt() / count as f64, degrees)
}

/// Wilson's 95 % interval of a share among `samples` independent ones.
pub(super) fn wilson(share: f64, samples: f64) -> [f64; 2] {
    let z2 = Z * Z / samples;
    let middle = (share + z2 / 2.0) / (1.0 + z2);
    let half = Z * (share * (1.0 - share) / samples + z2 / (4.0 * samples)).sqrt() / (1.0 + z2);
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

/// The value below which Student's t stays with a probability of 97.5 %.
///
/// The distribution function in θ = arctan(t/√ν) is a finite sum (Abramowitz & Stegun 26.7.3 and 26.7.4), inverted by
/// bisection; many degrees of freedom need only the first terms of the expansion about the normal one (26.7.5).
pub(super) fn student_t(degrees: usize) -> f64 {
    let nu = degrees as f64;
    if degrees > 200 {
        let z2 = Z * Z;
        let terms = [
            1.0,
            (z2 + 1.0) / 4.0,
            ((5.0 * z2 + 16.0) * z2 + 3.0) / 96.0,
            (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) / 384.0,
            ((((79.0 * z2 + 776.0) * z2 + 1482.0) * z2 - 1920.0) * z2 - 945.0) / 92160.0,
        ];
        return Z * terms.iter().rev().fold(0.0, |sum, term| sum / nu + term);
    }
    // probability that |t| is smaller
    let inside = |theta: f64| {
        let (sin, cos) = theta.sin_cos();
        // the sum's terms hold cosᵏ θ for k = ν − 2, ν − 4, … ≥ 1 or 0
        let mut sum = 0.0;
        let mut k = degrees as i32 - 2;
        while k >= 2 {
            sum = (sum + 1.0) * cos * cos * f64::from(k - 1) / f64::from(k);
            k -= 2;
        }
        match degrees {
            1 => theta / std::f64::consts::FRAC_PI_2,
            _ if degrees % 2 == 1 => (theta + sin * cos * (sum + 1.0)) / std::f64::consts::FRAC_PI_2,
            _ => sin * (sum + 1.0),
        }
    };
    let (mut low, mut high) = (0.0, std::f64::consts::FRAC_PI_2);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if inside(middle) < 0.95 {
            low = middle;
        } else {
            high = middle;
        }
    }
    nu.sqrt() * low.tan()
}

/// Quantile of values in ascending order, between two of them in proportion (Hyndman & Fan 1996, type 7). Its interval
/// ends at two of the values, chosen by the binomial distribution of how many lie below the quantile; where there are
/// too few values for 95 %, it ends at the smallest or largest.
///
/// There must be at least one value.
pub(super) fn quantile(sorted: &[f64], share: f64) -> Estimate {
    let last = sorted.len() - 1;
    let place = share * last as f64;
    let (below, part) = ((place.floor() as usize).min(last), place.fract());
    let value = sorted[below] + part * (sorted[(below + 1).min(last)] - sorted[below]);
    // probabilities of 0, 1, … values below, as logarithms, because the first ones can be too small for any float
    let count = sorted.len() as f64;
    let odds = (share / (1.0 - share)).ln();
    let (mut log, mut sum) = (count * (-share).ln_1p(), 0.0);
    let (mut low, mut high) = (None, last);
    for k in 0..=sorted.len() {
        sum += log.exp();
        if low.is_none() && sum >= 0.025 {
            low = Some(k.saturating_sub(1));
        }
        if sum >= 0.975 {
            high = k.min(last);
            break;
        }
        log += ((count - k as f64) / (k as f64 + 1.0)).ln() + odds;
    }
    Estimate { value, interval: [sorted[low.unwrap_or(0).min(last)], sorted[high]] }
}

/// Ranks counted from 1; equal values share the mean of theirs.
pub(super) fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = before as f64 + f64::midpoint(1.0, equal.len() as f64);
        for index in equal {
            ranks[*index] = rank;
        }
        before += equal.len();
    }
    ranks
}

/// Pearson's correlation; `None` if one side is constant.
pub(super) fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    // rounding can set the mean of equal values beside them
    if [a, b].iter().any(|x| x.iter().all(|value| *value == x[0])) {
        return None;
    }
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let [mut aa, mut bb, mut ab] = [0.0; 3];
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        aa += a * a;
        bb += b * b;
        ab += a * b;
    }
    let r = ab / (aa * bb).sqrt();
    // squares of differences that are too small for any float
    r.is_finite().then(|| r.clamp(-1.0, 1.0))
}

/// A correlation with Fisher's interval: artanh r is nearly normal with variance `spread` / (n − 3).
pub(super) fn fisher(r: f64, spread: f64, samples: usize) -> Estimate {
    let half = Z * (spread / (samples as f64 - 3.0)).sqrt();
    let end = |sign: f64| (r.atanh() + sign * half).tanh();
    Estimate { value: r, interval: [end(-1.0), end(1.0)] }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    #[test]
    fn student_t_as_scipy_has_it() {
        // scipy 1.17.1: scipy.stats.t.ppf(0.975, df)
        for (df, t) in [
            (1, 12.706_204_736_174_694),
            (2, 4.302_652_729_749_462),
            (3, 3.182_446_305_283_707_8),
            (4, 2.776_445_105_197_793_4),
            (7, 2.364_624_251_592_784),
            (30, 2.042_272_456_301_237_8),
            (199, 1.971_956_544_251_753_3),
            (200, 1.971_896_223_633_908_8),
            (201, 1.971_836_506_779_859),
            (1000, 1.962_339_080_826_408_3),
            (100_000, 1.959_987_707_534_609_5),
        ] {
            assert_relative_eq!(student_t(df), t, max_relative = 1e-11);
        }
    }

    #[test]
    fn means_of_clusters_as_statsmodels_has_them() {
        let clusters = [vec![1.0, 2.0, 4.0], vec![0.5, 0.25], vec![3.0, 1.0, 2.0, 2.5], vec![6.0]];
        // statsmodels: OLS(y, ones).fit(cov_type="cluster", cov_kwds={"groups": g}, use_t=True).conf_int()
        let mean = clustered_mean(&clusters);
        assert_relative_eq!(mean.value, 2.225, max_relative = 1e-15);
        assert_relative_eq!(mean.interval[0], 0.273_344_64, epsilon = 1e-8);
        assert_relative_eq!(mean.interval[1], 4.176_655_36, epsilon = 1e-8);
        // OLS(y, ones).fit().conf_int()
        let mean = clustered_mean(&[clusters.concat()]);
        assert_relative_eq!(mean.interval[0], 0.961_962_25, epsilon = 1e-8);
        assert_relative_eq!(mean.interval[1], 3.488_037_75, epsilon = 1e-8);
    }

    #[test]
    fn wilson_interval_as_published() {
        // statsmodels.stats.proportion.proportion_confint(81, 263, method="wilson"),
        // also in Newcombe (1998), table I
        let [low, high] = wilson(81.0 / 263.0, 263.0);
        assert_relative_eq!(low, 0.255_288_519_878_274_2, max_relative = 1e-12);
        assert_relative_eq!(high, 0.366_209_576_982_800_04, max_relative = 1e-12);
    }

    #[test]
    fn shares_of_dependent_values_count_for_less() {
        // every window all right or all wrong: eight windows are worth 8 values or so, not 80
        let whole: Vec<_> = (0..8).map(|i| vec![f64::from(u8::from(i % 2 == 0)); 10]).collect();
        let share = clustered_share(&whole);
        // Σ(±5)² · 8/7 / 80² = 1/28, so 0.25 · 28 = 7 values
        assert_eq!(share.value, 0.5);
        assert_relative_eq!(share.interval[0], wilson(0.5, 7.0)[0], max_relative = 1e-12);
        // balanced windows are worth no more values than there are, and ones alone as many as there are
        let balanced = vec![vec![0.0, 1.0]; 8];
        assert_eq!(clustered_share(&balanced).interval, wilson(0.5, 16.0));
        assert_eq!(clustered_share(&vec![vec![1.0; 5]; 4]).interval, wilson(1.0, 20.0));
    }

    #[test]
    fn quantiles_and_the_values_around_them() {
        // numpy.quantile([1, 1, 3, 4, 5], [0.5, 0.95]) = [3, 4.8]
        assert_eq!(quantile(&[1.0, 1.0, 3.0, 4.0, 5.0], 0.5).value, 3.0);
        assert_relative_eq!(quantile(&[1.0, 1.0, 3.0, 4.0, 5.0], 0.95).value, 4.8, max_relative = 1e-15);
        // scipy.stats.binom.ppf([0.025, 0.975], n, q) = [k, m]: the k-th and the (m + 1)-th value, if there are such
        for (n, q, interval) in [
            (30, 0.5, [10, 21]),
            (9, 0.5, [2, 8]),
            (100, 0.95, [90, 100]),
            (30, 0.95, [26, 30]),
            (5000, 0.999, [4990, 5000]),
            (5, 0.5, [1, 5]),
            (1, 0.5, [1, 1]),
        ] {
            let sorted: Vec<f64> = (1..=n).map(f64::from).collect();
            assert_eq!(quantile(&sorted, q).interval, interval.map(f64::from), "{n} values, {q}");
        }
    }

    #[test]
    fn correlations_as_scipy_has_them() {
        let a = [1.5, 2.0, 2.0, 3.5, 0.0, -1.0, 2.0, 7.0];
        let b = [2.0, 1.0, 3.0, 3.0, 0.5, 0.5, 4.0, 9.0];
        // scipy.stats.rankdata(a)
        assert_eq!(ranks(&a), [3.0, 5.0, 5.0, 7.0, 2.0, 1.0, 5.0, 8.0]);
        // scipy.stats.pearsonr(a, b).statistic and .confidence_interval()
        let pearson = fisher(correlation(&a, &b).unwrap(), 1.0, 8);
        assert_relative_eq!(pearson.value, 0.920_392_784_733_446_4, max_relative = 1e-14);
        assert_relative_eq!(pearson.interval[0], 0.613_844_762_961_475_8, max_relative = 1e-12);
        assert_relative_eq!(pearson.interval[1], 0.985_739_106_060_857_1, max_relative = 1e-12);
        // scipy.stats.spearmanr(a, b).statistic
        let spearman = correlation(&ranks(&a), &ranks(&b)).unwrap();
        assert_relative_eq!(spearman, 0.851_916_777_110_270_9, max_relative = 1e-14);
        // numpy.tanh(numpy.arctanh(r) ± scipy.stats.norm.ppf(0.975) · sqrt((1 + r²/2) / 5))
        let spearman = fisher(spearman, 1.0 + spearman * spearman / 2.0, 8);
        assert_relative_eq!(spearman.interval[0], 0.235_332_061_257_600_76, max_relative = 1e-12);
        assert_relative_eq!(spearman.interval[1], 0.979_552_200_701_697, max_relative = 1e-12);

        assert_eq!(correlation(&[1.0, 1.0], &[0.0, 1.0]), None);
        assert_eq!(fisher(1.0, 1.0, 10).interval, [1.0, 1.0]);
    }
}
