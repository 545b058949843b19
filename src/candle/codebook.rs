//! Codebooks whose values are learned, under codes that stay.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::bridge::{dtype_of, read};
use super::error::{TrainingError, wrap};
use crate::weight::{Codebooks, CompressedWeight};

/// Fine-tunes the values of a weight's codebooks: weights that share a code share a value, whose gradient is the sum of theirs (Han,
/// Mao & Dally 2016, "Deep Compression", section 3.3).
///
/// The values are a [`Var`] of their own, f32: give it to the optimizer in the place of the weight. Codes stay as they are, and so do
/// positions that a sparse layout leaves out. A dense layout does not tell pruned weights from others: their zero is a value of the
/// codebook, and learned. What [`compress`](Self::compress) stores is, bit for bit, what the network computes with.
///
/// ```
/// use candle_core::Device;
/// use tersor::candle::LearnedCodebook;
/// use tersor::{CodebookBits, KMeans, Layer, Method, Precision};
///
/// let layer = Layer::new(&[2, 3], &[1.0, 1.0, -2.0, 4.0, -2.0, 1.0], Precision::F32);
/// let stored = KMeans::new(CodebookBits::new(2).unwrap()).compress(&layer)?.weight;
/// let codebook = LearnedCodebook::new(stored)?;
/// let loss = (codebook.weight()? * 2.0)?.sum_all()?;
/// let grad: Vec<f32> = loss.backward()?.get(codebook.values()).unwrap().to_vec1()?;
/// assert_eq!(grad[..2], [2.0, 4.0]); // of the first row −2 is one weight, 1 is two
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct LearnedCodebook {
    weight: CompressedWeight,
    /// Of every weight the index of its value in all codebooks; one more for what is pruned.
    codes: Tensor,
    values: Var,
}

impl LearnedCodebook {
    /// The codebooks of a weight, whose values are where training starts.
    ///
    /// # Errors
    /// When the weight has none.
    pub fn new(weight: CompressedWeight) -> Result<Self> {
        let (Some(books), Some(codes), Some(grid)) =
            (weight.codebooks(), weight.codebook_codes(), weight.form().grid())
        else {
            let form = weight.form().to_string();
            return Err(wrap(TrainingError::NoCodebooks { form }));
        };
        let (cols, entries) = (weight.cols(), books.bits().entries());
        let (mask, pruned) = (weight.mask(), books.values().len() as u32);
        let index = |(at, code): (usize, &u8)| {
            let (row, col) = (at / cols, at % cols);
            let kept = mask.as_ref().is_none_or(|mask| mask.keeps(row, col));
            if kept { (grid.index(row, col) * entries) as u32 + u32::from(*code) } else { pruned }
        };
        let codes: Vec<u32> = codes.iter().enumerate().map(index).collect();
        let codes = Tensor::from_vec(codes, weight.rows() * cols, &Device::Cpu)?;
        let values = Var::from_slice(books.values(), books.values().len(), &Device::Cpu)?;
        Ok(Self { weight, codes, values })
    }

    /// The values of all codebooks, to be given to an optimizer.
    pub fn values(&self) -> &Var {
        &self.values
    }

    /// The weight, with the values as they are, for the forward pass.
    ///
    /// # Shapes
    /// That of the weight; f32.
    ///
    /// # Errors
    /// When candle cannot look the values up.
    pub fn weight(&self) -> Result<Tensor> {
        let zero = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        let precision = self.weight.codebooks().map_or(DType::F32, |books| dtype_of(books.precision()));
        let values = self.values.to_dtype(precision)?.to_dtype(DType::F32)?;
        Tensor::cat(&[values, zero], 0)?.index_select(&self.codes, 0)?.reshape(self.weight.shape())
    }

    /// The weight as it is stored.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn compress(&self) -> Result<CompressedWeight> {
        let Some(books) = self.weight.codebooks() else { return Ok(self.weight.clone()) };
        let values = read(&self.values, |values| Ok(values.to_vec()))?;
        let books = Codebooks::new(books.bits(), books.granularity(), books.precision(), values);
        books.and_then(|books| self.weight.clone().with_codebooks(books)).map_err(wrap)
    }
}
