//! Compressed weights of every form and the metadata that describes them (key `tersor`), to be written or spoiled.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tersor::{
    Bits, CodebookBits, Codebooks, Coding, CompressedWeight, DType, DenseValues, Form, Granularity,
    LayoutKind, LowRank, Mask, NofM, Precision, Scales, StoredTensor, coded_tensor, stored_tensors,
};

use crate::common::{File, safetensors, stored};

pub(crate) const NAME: &str = "fc.weight";

/// Tensors and the metadata that describes them, to be spoiled and written.
pub(crate) struct Draft {
    pub(crate) tensors: Vec<StoredTensor>,
    pub(crate) document: Value,
}

impl Draft {
    pub(crate) fn of(weights: &[(&str, &CompressedWeight)]) -> Self {
        let tensors = weights.iter().flat_map(|(name, weight)| stored_tensors(name, weight)).collect();
        let forms: serde_json::Map<String, Value> =
            weights.iter().map(|(name, weight)| ((*name).to_owned(), describe(weight.form()))).collect();
        Self { tensors, document: json!({"version": 1, "weights": forms}) }
    }

    /// The same, each weight in one entropy-coded tensor.
    pub(crate) fn coded(weights: &[(&str, &CompressedWeight)]) -> Self {
        let mut draft = Self::of(weights);
        draft.tensors = weights.iter().map(|(name, weight)| coded_tensor(name, weight)).collect();
        for (name, _) in weights {
            draft.document["weights"][name]["entropy"] = "rans".into();
        }
        draft
    }

    pub(crate) fn part(&mut self, suffix: &str) -> &mut StoredTensor {
        let name = format!("{NAME}{suffix}");
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    /// Gives a part other data of the same type and shape.
    pub(crate) fn with_data(mut self, suffix: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        let part = self.part(suffix);
        assert_eq!(part.bytes.len(), bytes.len());
        part.bytes = bytes;
        self
    }

    /// Replaces a part.
    pub(crate) fn with_part(
        mut self,
        suffix: &str,
        dtype: DType,
        shape: &[usize],
        bytes: impl Into<Vec<u8>>,
    ) -> Self {
        *self.part(suffix) = stored(&format!("{NAME}{suffix}"), dtype, shape, bytes);
        self
    }

    /// Replaces a value of the weight's form.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        let form = &mut self.document["weights"][NAME];
        match key.strip_prefix("coding.") {
            Some(key) => form["coding"][key] = value,
            None => form[key] = value,
        }
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let metadata = BTreeMap::from([("tersor".to_owned(), self.document.to_string())]);
        safetensors(&self.tensors, &metadata)
    }

    pub(crate) fn file(&self) -> File {
        File::new(self.bytes())
    }
}

/// A form as the metadata writes it.
pub(crate) fn describe(form: &Form) -> Value {
    let precision = |p| match p {
        Precision::F32 => "F32",
        Precision::F16 => "F16",
        Precision::Bf16 => "BF16",
    };
    let tiled = |mut coding: Value, granularity| {
        coding["strategy"] = match granularity {
            Granularity::Tensor => "tensor",
            Granularity::Channel => "channel",
            Granularity::Group(size) => {
                coding["group_size"] = json!(size);
                "group"
            }
            Granularity::Block(rows, cols) => {
                coding["block"] = json!([rows, cols]);
                "block"
            }
        }
        .into();
        coding
    };
    let scaled = |mut coding: Value, granularity, scales| {
        coding["scale_dtype"] = precision(scales).into();
        tiled(coding, granularity)
    };
    let coding = |coding| match coding {
        Coding::Float(p) => json!({"type": "float", "dtype": precision(p)}),
        Coding::F8E4M3 { granularity, scales } => scaled(json!({"type": "f8_e4m3"}), granularity, scales),
        Coding::Int { bits, symmetric, granularity, scales } => {
            scaled(json!({"type": "int", "bits": bits.get(), "symmetric": symmetric}), granularity, scales)
        }
        Coding::Codebook { bits, granularity, values } => {
            tiled(json!({"type": "codebook", "bits": bits.get(), "dtype": precision(values)}), granularity)
        }
    };
    let layout = match form.layout() {
        LayoutKind::Dense => "dense".to_owned(),
        LayoutKind::Bitmask => "bitmask".to_owned(),
        LayoutKind::NofM(pattern) => format!("{}:{}", pattern.n(), pattern.m()),
        LayoutKind::CompressedRows => "rows".to_owned(),
        LayoutKind::Empty => "empty".to_owned(),
    };
    let mut described = json!({"shape": form.shape(), "layout": layout, "kept": form.kept(), "coding": coding(form.coding())});
    if let Some(factors) = form.low_rank() {
        described["low_rank"] = json!({"rank": factors.rank, "coding": coding(factors.coding)});
    }
    described
}

pub(crate) fn pattern(n: usize, m: usize) -> LayoutKind {
    LayoutKind::NofM(NofM::new(n, m).unwrap())
}

pub(crate) fn scales_of(
    granularity: Granularity,
    precision: Precision,
    symmetric: bool,
    rows: usize,
    cols: usize,
) -> Scales {
    let count = granularity.grid(rows, cols).len();
    let scales = (0..count).map(|i| 0.25 * (1 + i % 7) as f32).collect();
    let zero_points = (!symmetric).then(|| (0..count).map(|i| (i % 4) as i8 - 2).collect());
    Scales::new(granularity, precision, scales, zero_points).unwrap()
}

/// Keeps two of every four neighbours, and nothing or everything of some rows where the layout lets it.
pub(crate) fn mask_of(layout: LayoutKind, rows: usize, cols: usize) -> Option<Mask> {
    match layout {
        LayoutKind::Dense => None,
        LayoutKind::NofM(_) => {
            Some(Mask::from_fn(rows, cols, |row, col| col / 4 * 4 + 2 > cols || (col + row) % 4 < 2))
        }
        _ => Some(Mask::from_fn(rows, cols, |row, col| row == 1 || (row != 2 && (row * 3 + col) % 3 == 0))),
    }
}

pub(crate) fn int_weight(
    layout: LayoutKind,
    bits: u8,
    symmetric: bool,
    granularity: Granularity,
    p: Precision,
) -> CompressedWeight {
    let (rows, cols) = (5, 12);
    let half = 1i32 << (bits - 1);
    let codes: Vec<i8> = (0..rows * cols).map(|i| ((i as i32 * 7) % (2 * half) - half) as i8).collect();
    let scales = scales_of(granularity, p, symmetric, rows, cols);
    let values = DenseValues::Int(Bits::new(bits).unwrap(), &codes, &scales);
    CompressedWeight::encode(&[rows, cols], layout, mask_of(layout, rows, cols).as_ref(), values).unwrap()
}

pub(crate) fn f8_weight(layout: LayoutKind, granularity: Granularity, p: Precision) -> CompressedWeight {
    let (rows, cols) = (5, 12);
    let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 5 % 0x7f) as u8 | (i as u8 % 2) << 7).collect();
    let scales = scales_of(granularity, p, true, rows, cols);
    let values = DenseValues::F8E4M3(&codes, &scales);
    CompressedWeight::encode(&[rows, cols], layout, mask_of(layout, rows, cols).as_ref(), values).unwrap()
}

pub(crate) fn codebook_weight(
    layout: LayoutKind,
    bits: u8,
    granularity: Granularity,
    p: Precision,
) -> CompressedWeight {
    let (rows, cols) = (5, 12);
    let bits = CodebookBits::new(bits).unwrap();
    let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % bits.entries()) as u8).collect();
    let count = granularity.grid(rows, cols).len() * bits.entries();
    let values = (0..count).map(|i| (i % 37) as f32 / 8.0 - 2.0).collect();
    let books = Codebooks::new(bits, granularity, p, values).unwrap();
    let values = DenseValues::Codebook(&codes, &books);
    CompressedWeight::encode(&[rows, cols], layout, mask_of(layout, rows, cols).as_ref(), values).unwrap()
}

pub(crate) fn float_weight(layout: LayoutKind, p: Precision) -> CompressedWeight {
    let (rows, cols) = (5, 12);
    let values: Vec<f32> = (0..rows * cols).map(|i| i as f32 / 8.0 - 3.0).collect();
    let mask = mask_of(layout, rows, cols);
    CompressedWeight::encode(&[rows, cols], layout, mask.as_ref(), DenseValues::Float(p, &values)).unwrap()
}

/// Factors of a 5 × 12 matrix.
pub(crate) fn factors(rank: usize, coding: Coding) -> LowRank {
    let values: Vec<f32> = (0..12 * rank).map(|i| (i * 5 % 11) as f32 - 4.0).collect();
    let factor = |rows: usize, cols: usize| {
        let (shape, values) = ([rows, cols], &values[..rows * cols]);
        let Coding::Int { bits, symmetric, granularity, .. } = coding else {
            return CompressedWeight::from_f32(&shape, Precision::F16, values).unwrap();
        };
        let codes: Vec<i8> = values.iter().map(|x| *x as i8).collect();
        let scales = scales_of(granularity, Precision::F32, symmetric, rows, cols);
        let values = DenseValues::Int(bits, &codes, &scales);
        CompressedWeight::encode(&shape, LayoutKind::Dense, None, values).unwrap()
    };
    LowRank::new(factor(5, rank), factor(rank, 12)).unwrap()
}

pub(crate) const INT6: Coding = Coding::Int {
    bits: Bits::new(6).unwrap(),
    symmetric: false,
    granularity: Granularity::Channel,
    scales: Precision::F32,
};

/// Products of factors, and weights to which one is added.
pub(crate) fn low_rank_weights() -> Vec<CompressedWeight> {
    let f16 = Coding::Float(Precision::F16);
    let mut weights = vec![
        CompressedWeight::low_rank(&[5, 12], factors(2, f16)).unwrap(),
        CompressedWeight::low_rank(&[5, 12], factors(5, INT6)).unwrap(),
        CompressedWeight::low_rank(&[5, 3, 2, 2], factors(1, f16)).unwrap(),
    ];
    for layout in layouts() {
        let base = int_weight(layout, 4, false, Granularity::Channel, Precision::F16);
        weights.push(base.with_correction(factors(3, INT6)).unwrap());
        weights.push(float_weight(layout, Precision::F32).with_correction(factors(1, f16)).unwrap());
    }
    weights
}

pub(crate) fn layouts() -> [LayoutKind; 4] {
    [LayoutKind::Dense, LayoutKind::Bitmask, pattern(2, 4), LayoutKind::CompressedRows]
}

pub(crate) fn granularities() -> [Granularity; 5] {
    let size = |n| std::num::NonZeroUsize::new(n).unwrap();
    // groups of 5 leave 2 of 12 columns over; blocks of 2 × 5 also leave a row over
    [
        Granularity::Tensor,
        Granularity::Channel,
        Granularity::Group(size(4)),
        Granularity::Group(size(5)),
        Granularity::Block(size(2), size(5)),
    ]
}

pub(crate) const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::Bf16];

/// One weight of every layout × coding × granularity.
pub(crate) fn every_form() -> Vec<CompressedWeight> {
    let mut weights = Vec::new();
    for layout in layouts() {
        weights.extend(PRECISIONS.map(|p| float_weight(layout, p)));
        for (granularity, p) in granularities().into_iter().zip(PRECISIONS.into_iter().cycle()) {
            weights.push(f8_weight(layout, granularity, p));
            weights.extend([1, 4, 5].map(|bits| codebook_weight(layout, bits, granularity, p)));
            for bits in 2..=8 {
                weights.push(int_weight(layout, bits, true, granularity, p));
                weights.push(int_weight(layout, bits, false, granularity, p));
            }
        }
    }
    weights.extend(low_rank_weights());
    weights
}

pub(crate) fn draft(weight: &CompressedWeight) -> Draft {
    Draft::of(&[(NAME, weight)])
}

/// int4, dense, one scale a row: `_packed` I32 [5, 2], `_scale` F32 [5, 1], `_shape` I64 [2].
pub(crate) fn dense_int() -> Draft {
    draft(&int_weight(LayoutKind::Dense, 4, true, Granularity::Channel, Precision::F32))
}

/// A 2 × 3 matrix: `_values` F32 [3] at (0, 0), (0, 2), (1, 1).
pub(crate) fn sparse(layout: LayoutKind) -> Draft {
    let mask = Mask::from_fn(2, 3, |row, col| (row + col) % 2 == 0);
    let values = [1.0, 9.0, 2.0, 9.0, 3.0, 9.0];
    let values = DenseValues::Float(Precision::F32, &values);
    draft(&CompressedWeight::encode(&[2, 3], layout, Some(&mask), values).unwrap())
}

/// 1:2 over four columns, two rows: positions 1, 0, 0, 1 in one word.
pub(crate) fn one_of_two() -> Draft {
    let mask = Mask::from_fn(2, 4, |row, col| [1, 2, 0, 3][row * 2 + col / 2] == col);
    let values = DenseValues::Float(Precision::F32, &[1.0; 8]);
    draft(&CompressedWeight::encode(&[2, 4], pattern(1, 2), Some(&mask), values).unwrap())
}

/// 2:4 over four columns, one row: positions 1 and 2 of two bits each.
pub(crate) fn two_of_four() -> Draft {
    let mask = Mask::from_fn(1, 4, |_, col| col == 1 || col == 2);
    let values = DenseValues::Float(Precision::F32, &[1.0; 4]);
    draft(&CompressedWeight::encode(&[1, 4], pattern(2, 4), Some(&mask), values).unwrap())
}
