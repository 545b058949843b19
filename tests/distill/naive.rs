//! Naive formulas, any shape and stride.

use approx::{assert_abs_diff_eq, assert_relative_eq};
use ndarray::s;
use proptest::prelude::*;
use tersor::distill::{CrossEntropy, DecoupledDistillation, Divergence, DivergenceLoss, Labels, Reduction};

use crate::losses::grid;

fn naive_softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let powers: Vec<f64> = logits.iter().map(|&x| (f64::from(x) / temperature).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn naive_kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn logit_losses_equal_the_textbook_formulas(
        rows in 1_usize..6, classes in 2_usize..37, seed: u32, temperature in 0.5_f32..8.0, transposed: bool,
    ) {
        let make = |seed: u64| {
            // Twice as wide as needed and stepped through, or transposed: never contiguous rows.
            let shape = if transposed { (classes, rows) } else { (rows, 2 * classes) };
            let all = grid(shape, seed, 6);
            if transposed { all.reversed_axes() } else { all.slice_move(s![.., ..;2]) }
        };
        let (student, teacher) = (make(seed.into()), make(u64::from(seed) + 99));
        let labels: Vec<i64> = (0..rows).map(|row| ((row + seed as usize) % classes) as i64).collect();
        let t = f64::from(temperature);

        let forward = DivergenceLoss::new(Divergence::ForwardKl, temperature).reduction(Reduction::None);
        let forward = forward.evaluate(student.view(), teacher.view(), None).unwrap();
        let decoupled = DecoupledDistillation::new(temperature).alpha(1.0).beta(2.0).reduction(Reduction::None);
        let decoupled = decoupled.evaluate(student.view(), teacher.view(), Labels::new(&labels)).unwrap();
        let hard = CrossEntropy::new().reduction(Reduction::None);
        let hard = hard.evaluate(student.view(), Labels::new(&labels)).unwrap();
        for (row, &label) in labels.iter().enumerate() {
            let (s, p_logits) = (student.row(row).to_vec(), teacher.row(row).to_vec());
            let (q, p) = (naive_softmax(&s, t), naive_softmax(&p_logits, t));
            let y = label as usize;
            assert_relative_eq!(forward.value.per_row().unwrap()[row], t * t * naive_kl(&p, &q), max_relative = 1e-9);

            let others = |v: &[f64]| -> Vec<f64> {
                let rest = || v.iter().enumerate().filter(|&(class, _)| class != y).map(|(_, v)| v);
                let sum: f64 = rest().sum();
                rest().map(|v| v / sum).collect()
            };
            let target = naive_kl(&[p[y], 1.0 - p[y]], &[q[y], 1.0 - q[y]]);
            let want = t * t * (target + 2.0 * naive_kl(&others(&p), &others(&q)));
            assert_relative_eq!(decoupled.value.per_row().unwrap()[row], want, max_relative = 1e-9, epsilon = 1e-12);

            let one = naive_softmax(&s, 1.0);
            assert_relative_eq!(hard.value.per_row().unwrap()[row], -one[y].ln(), max_relative = 1e-9, epsilon = 1e-14);
            for (class, &grad) in hard.grad.row(row).iter().enumerate() {
                let want = one[class] - f64::from(u8::from(class == y));
                assert_abs_diff_eq!(f64::from(grad), want, epsilon = 1e-7);
            }
        }
    }
}
