mod arrange;

use std::sync::OnceLock;

use ndarray::{Array2, ArrayView2};

use self::arrange::{can_run_sparsely, dense, densely, float_panels, slices, sparse, sparse_batch, tiles_of};
use super::form::{Form, LayoutKind};
use super::layout::Layout;
use super::values::Values;
use super::{CompressedWeight, WeightError};
use crate::kernels::get_or_make;
use crate::kernels::level::Isa;
use crate::kernels::matmul::codes::CodeRows;
use crate::kernels::matmul::panels::Panels;
use crate::kernels::matmul::rows::rows_product;
use crate::kernels::matmul::sparse::rows::SparseRows;
use crate::kernels::matmul::sparse::slices::Slices;
use crate::kernels::matmul::{self, ActivationCodes, Epilogue, Product, sparse as sparse_kernels};

/// How activations enter a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activations {
    /// As they are, in `f32`.
    Float,
    /// Rounded to 8-bit codes on the way; sums of products are exact integers.
    Int8(ActivationCodes),
}

/// A weight arranged once for fast products `y = x · Wᵀ`, of any number of rows of activations.
///
/// A code keeps its value `(code − zero_point) · scale`, computed in `f32`: where the model's precision is f16 or bf16,
/// [`CompressedWeight::dequantize`] rounds it to that precision, and this type does not.
///
/// ```
/// use tersor::{ActivationCodes, Activations, Bits, CompressedWeight, Layer, Method, PackedWeight};
/// use tersor::{Precision, RoundToNearest};
///
/// let values: Vec<f32> = (0..64 * 128).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
/// let layer =
///     Layer::new(&[64, 128], &values, Precision::F32);
/// let int8 = RoundToNearest::int(Bits::new(8).unwrap()).compress(&layer)?.weight;
///
/// let x = ndarray::Array2::from_shape_fn((3, 128), |(row, col)| ((row + col) % 7) as f32 - 3.0);
/// let exact = PackedWeight::new(&int8, Activations::Float)?.matmul(x.view())?;
/// let fast = PackedWeight::new(&int8, Activations::Int8(ActivationCodes::PerToken))?.matmul(x.view())?;
/// for (fast, exact) in fast.iter().zip(&exact) {
///     assert!((fast - exact).abs() < 1.0);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PackedWeight {
    form: Form,
    arranged: Arranged,
    /// `V` and `U` of two factors.
    factors: Option<Box<[PackedWeight; 2]>>,
}

/// An arrangement for each layout and kind of activations.
#[derive(Debug, Clone, PartialEq)]
enum Arranged {
    /// There is nothing but factors.
    Empty,
    DenseFloat(Panels),
    DenseCodes(CodeRows),
    DenseInt8(Panels, ActivationCodes),
    SparseFloat(Box<SparseFloats>),
    SparseInt8(Box<SparseCodes>),
}

/// Sparse values that meet activations as they are.
#[derive(Debug, Clone, PartialEq)]
struct SparseFloats {
    rows: SparseRows,
    /// Most rows of activations for which zeros are left out.
    most: usize,
    dense: Later,
}

/// Sparse codes that meet 8-bit activations.
#[derive(Debug, Clone, PartialEq)]
struct SparseCodes {
    slices: Slices,
    how: ActivationCodes,
    /// Most rows of activations for which zeros are left out.
    most: usize,
    dense: Later,
}

/// The same densely, made when many rows of activations first ask for it. It is no part of what a weight is.
#[derive(Debug, Clone, Default)]
struct Later(OnceLock<Panels>);

impl PartialEq for Later {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl PackedWeight {
    /// Arranges a weight for the fastest products.
    ///
    /// A weight that is stored sparsely is arranged sparsely where leaving zeros out is faster for a row of activations: floats, from
    /// half zeros on; integer codes that meet 8-bit activations, 2:4 or from about 70 % zeros on, in groups of a multiple
    /// of 64 columns (or one) and without zero points. Otherwise it is arranged densely, zeros and all, which can take more
    /// memory than the file. When more rows of activations come than [`sparse_batch`](Self::sparse_batch) says, a sparse weight is
    /// arranged densely, too, and kept. [`smallest`](Self::smallest) does neither. Factors of low rank are
    /// dense, and take float activations always.
    ///
    /// # Errors
    /// When 8-bit activations are asked for and the weight is not of integers.
    pub fn new(weight: &CompressedWeight, activations: Activations) -> Result<Self, WeightError> {
        let most = sparse_batch(weight, activations);
        Self::arranged(weight, activations, most)
    }

    /// Arranges a weight in the fewest bytes: one that is stored sparsely sparsely, even where its products are faster densely.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn smallest(weight: &CompressedWeight, activations: Activations) -> Result<Self, WeightError> {
        let most = if can_run_sparsely(weight, activations) { usize::MAX } else { 0 };
        Self::arranged(weight, activations, most)
    }

    fn arranged(
        weight: &CompressedWeight,
        activations: Activations,
        most: usize,
    ) -> Result<Self, WeightError> {
        let (sparsely, is_dense) = (most > 0, matches!(weight.layout(), Layout::Dense));
        let arranged = match (activations, weight.values()) {
            (Activations::Float, _) if matches!(weight.layout(), Layout::Empty) => Arranged::Empty,
            (Activations::Float, _) if sparsely => {
                let (rows, dense) = (sparse(weight), Later::default());
                Arranged::SparseFloat(Box::new(SparseFloats { rows, most, dense }))
            }
            (Activations::Float, Values::Codebook { codes, books }) if is_dense => match tiles_of(weight) {
                Some(tiles) if CodeRows::fits(books.bits.get(), tiles) => {
                    let row = |row, out: &mut [u8]| codes.unpack(row, 0, out);
                    let shape = [weight.rows(), weight.cols()];
                    Arranged::DenseCodes(CodeRows::new(shape, books.bits.get(), tiles, books.values(), row))
                }
                _ => Arranged::DenseFloat(dense(weight, false)),
            },
            (Activations::Float, _) => Arranged::DenseFloat(dense(weight, false)),
            (Activations::Int8(how), Values::Int { bits, codes, scales }) => {
                check_scale(how)?;
                if sparsely {
                    let slices = slices(weight, *bits, codes, scales)?;
                    let dense = Later::default();
                    Arranged::SparseInt8(Box::new(SparseCodes { slices, how, most, dense }))
                } else {
                    Arranged::DenseInt8(dense(weight, how.has_zero_points()), how)
                }
            }
            (Activations::Int8(_), _) => {
                let reason =
                    format!("8-bit activations need integer codes, and this weight holds {}", weight.form());
                return Err(WeightError::Unsupported { reason });
            }
        };
        let factors = match weight.factors() {
            Some(factors) => {
                let arrange = |factor| Self::new(factor, Activations::Float);
                Some(Box::new([arrange(factors.v())?, arrange(factors.u())?]))
            }
            None => None,
        };
        Ok(Self { form: weight.form().clone(), arranged, factors })
    }

    /// What the weight looked like: shape, layout, coding.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// How activations enter a product.
    pub fn activations(&self) -> Activations {
        match &self.arranged {
            Arranged::Empty
            | Arranged::DenseFloat(_)
            | Arranged::DenseCodes(_)
            | Arranged::SparseFloat(_) => Activations::Float,
            Arranged::DenseInt8(_, how) => Activations::Int8(*how),
            Arranged::SparseInt8(codes) => Activations::Int8(codes.how),
        }
    }

    /// Rows of the matrix: output features.
    pub fn rows(&self) -> usize {
        self.form.rows()
    }

    /// Columns of the matrix: input features.
    pub fn cols(&self) -> usize {
        self.form.cols()
    }

    /// Bytes in memory, which every product with few rows of activations reads once. Sparse weights that have met many rows of
    /// activations are there densely, too.
    pub fn bytes(&self) -> usize {
        let of_factors =
            self.factors.iter().flat_map(|factors| factors.iter()).map(Self::bytes).sum::<usize>();
        let arranged = match &self.arranged {
            Arranged::Empty => 0,
            Arranged::DenseFloat(panels) | Arranged::DenseInt8(panels, _) => panels.bytes(),
            Arranged::DenseCodes(codes) => codes.bytes(),
            Arranged::SparseFloat(floats) => {
                floats.rows.bytes() + floats.dense.0.get().map_or(0, Panels::bytes)
            }
            Arranged::SparseInt8(codes) => {
                codes.slices.bytes() + codes.dense.0.get().map_or(0, Panels::bytes)
            }
        };
        of_factors + arranged
    }

    /// Most rows of activations for which products leave zeros out; for more, they meet zeros, too. `None` of a weight that is
    /// stored densely; 0 of one that is stored sparsely and runs densely, because that is faster at its sparsity.
    pub fn sparse_batch(&self) -> Option<usize> {
        match &self.arranged {
            _ if self.form.layout() == LayoutKind::Dense => None,
            Arranged::Empty => None,
            Arranged::DenseFloat(_) | Arranged::DenseCodes(_) | Arranged::DenseInt8(..) => Some(0),
            Arranged::SparseFloat(floats) => Some(floats.most),
            Arranged::SparseInt8(codes) => Some(codes.most),
        }
    }

    /// The product `y = x · Wᵀ`.
    ///
    /// The result depends neither on the number of threads nor on their timing. A row of activations that holds NaN or an
    /// infinity gives a row of NaN with 8-bit activations, and what IEEE 754 says with float ones.
    ///
    /// # Shapes
    /// `x` is `[batch, cols]`; the result is `[batch, rows]`.
    ///
    /// # Errors
    /// When `x` has another number of columns.
    pub fn matmul(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, WeightError> {
        let (batch, features) = x.dim();
        if features != self.cols() {
            return Err(WeightError::Activations { activations: [batch, features], cols: self.cols() });
        }
        let x = x.as_standard_layout();
        let mut y = Array2::zeros((batch, self.rows()));
        if let (Some(x), Some(y)) = (x.as_slice(), y.as_slice_mut()) {
            self.matmul_into(x, Epilogue::default(), y)?;
        }
        Ok(y)
    }

    /// The product `y = x · Wᵀ`, and what follows it, into memory of the caller's.
    ///
    /// # Shapes
    /// `x` is `[batch, cols]` and `y` is `[batch, rows]`, row-major; the bias has `rows` values. The batch is what `y` has
    /// room for, that of `x` for a weight without rows.
    ///
    /// # Errors
    /// When the lengths do not fit.
    pub fn matmul_into(&self, x: &[f32], epilogue: Epilogue<'_>, y: &mut [f32]) -> Result<(), WeightError> {
        let batch = y.len().checked_div(self.rows()).unwrap_or(0);
        self.check(x, batch, epilogue, y)?;
        let Some(factors) = &self.factors else {
            self.product(x, batch, epilogue, y);
            return Ok(());
        };
        let [v, u] = &**factors;
        let mut inner = vec![0.0; batch * v.rows()];
        v.product(x, batch, Epilogue::default(), &mut inner);
        if matches!(self.arranged, Arranged::Empty) {
            u.product(&inner, batch, epilogue, y);
            return Ok(());
        }
        self.product(x, batch, Epilogue::default(), y);
        let mut added = vec![0.0; y.len()];
        u.product(&inner, batch, Epilogue::default(), &mut added);
        for (y, added) in y.chunks_exact_mut(self.rows()).zip(added.chunks_exact(self.rows())) {
            for (output, (y, added)) in y.iter_mut().zip(added).enumerate() {
                *y = epilogue.apply(*y + added, output);
            }
        }
        Ok(())
    }

    /// What [`matmul_into`](Self::matmul_into) does without factors, lengths being checked.
    fn product(&self, x: &[f32], batch: usize, epilogue: Epilogue<'_>, y: &mut [f32]) {
        let isa = Isa::current();
        match &self.arranged {
            Arranged::Empty => {}
            Arranged::DenseFloat(panels) => {
                matmul::float_products(isa, vec![Product { panels, epilogue, y }], x, batch);
            }
            Arranged::DenseCodes(codes) => rows_product(isa, codes, x, batch, epilogue, y),
            Arranged::DenseInt8(panels, codes) => {
                matmul::int_products(isa, vec![Product { panels, epilogue, y }], x, batch, *codes);
            }
            Arranged::SparseFloat(floats) => {
                let SparseFloats { rows, most, dense } = &**floats;
                // codes under scales are arranged sparsely only where they are to take the fewest bytes
                match if batch > *most { float_panels(rows, dense) } else { None } {
                    Some(panels) => {
                        matmul::float_products(isa, vec![Product { panels, epilogue, y }], x, batch);
                    }
                    None => sparse_kernels::rows::product(isa, rows, x, batch, epilogue, y),
                }
            }
            Arranged::SparseInt8(codes) => {
                let SparseCodes { slices, how, most, dense } = &**codes;
                if batch <= *most {
                    sparse_kernels::slices::product(isa, slices, x, batch, *how, epilogue, y);
                } else {
                    let panels = get_or_make(&dense.0, || densely(slices, how.has_zero_points()));
                    matmul::int_products(isa, vec![Product { panels, epilogue, y }], x, batch, *how);
                }
            }
        }
    }
}

impl PackedWeight {
    fn check(&self, x: &[f32], batch: usize, epilogue: Epilogue<'_>, y: &[f32]) -> Result<(), WeightError> {
        let (rows, cols) = (self.rows(), self.cols());
        WeightError::check_len("outputs", batch * rows, y.len())?;
        if rows > 0 {
            WeightError::check_len("activations", batch * cols, x.len())?;
        }
        match epilogue.bias {
            Some(bias) => WeightError::check_len("biases", rows, bias.len()),
            None => Ok(()),
        }
    }
}

/// Several products with the same activations, computed side by side.
pub(crate) struct Together<'a> {
    pub(crate) weight: &'a PackedWeight,
    pub(crate) epilogue: Epilogue<'a>,
    /// `[batch, rows]`
    pub(crate) y: &'a mut [f32],
}

/// As [`PackedWeight::matmul_into`] for each weight. Activations are arranged once for all weights that take them alike.
pub(crate) fn matmul_together(
    products: Vec<Together<'_>>,
    x: &[f32],
    batch: usize,
) -> Result<(), WeightError> {
    let (mut floats, mut integers) = (Vec::new(), Vec::<(ActivationCodes, Vec<Product<'_>>)>::new());
    for Together { weight, epilogue, y } in products {
        if weight.factors.is_some() {
            weight.matmul_into(x, epilogue, y)?;
            continue;
        }
        match &weight.arranged {
            Arranged::DenseFloat(panels) => {
                weight.check(x, batch, epilogue, y)?;
                floats.push(Product { panels, epilogue, y });
            }
            Arranged::DenseInt8(panels, codes) => {
                weight.check(x, batch, epilogue, y)?;
                let product = Product { panels, epilogue, y };
                match integers.iter_mut().find(|(how, _)| how == codes) {
                    Some((_, products)) => products.push(product),
                    None => integers.push((*codes, vec![product])),
                }
            }
            Arranged::Empty
            | Arranged::DenseCodes(_)
            | Arranged::SparseFloat(_)
            | Arranged::SparseInt8(..) => {
                weight.matmul_into(x, epilogue, y)?;
            }
        }
    }
    if !floats.is_empty() {
        matmul::float_products(Isa::current(), floats, x, batch);
    }
    for (how, products) in integers {
        matmul::int_products(Isa::current(), products, x, batch, how);
    }
    Ok(())
}

/// A static scale is positive, and so is its inverse.
fn check_scale(codes: ActivationCodes) -> Result<(), WeightError> {
    match codes {
        ActivationCodes::Static { scale, .. }
            if !(scale > 0.0 && scale.is_finite() && (1.0 / scale).is_finite()) =>
        {
            Err(WeightError::Scale { index: 0, value: scale })
        }
        _ => Ok(()),
    }
}
