//! The distillation losses as operations of candle.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};
use ndarray::{ArrayView, ArrayView2, Dimension};

use super::bridge::{constant, on_cpu, read, slice};
use super::error::{TrainingError, wrap};
use crate::distill::{
    AttentionTransfer, CosineDistance, CrossEntropy, DecoupledDistillation, DistillError, DivergenceLoss,
    KnowledgeDistillation, Labels, LossGrad, LossValue, MeanSquaredError, RelationalDistillation,
    SoftCrossEntropy,
};

const STUDENT: &str = "the student";
const TEACHER: &str = "the teacher";
const PROJECTION: &str = "the projection";

/// The true class of every row, as the losses take it.
fn classes(labels: &Tensor) -> Result<Vec<i64>> {
    if labels.rank() != 1 {
        let (what, shape) = ("the tensor of labels", labels.dims().to_vec());
        return Err(wrap(TrainingError::Rank { what, shape, expected: "one class a row" }));
    }
    if labels.dtype().is_float() {
        let (what, actual) = ("the tensor of labels".to_owned(), labels.dtype());
        return Err(wrap(TrainingError::ElementType { what, actual, expected: "u8, u32 or i64" }));
    }
    labels.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.to_vec1()
}

fn optional_classes(labels: Option<&Tensor>) -> Result<Option<Vec<i64>>> {
    labels.map(classes).transpose()
}

fn view<'v, D: Dimension>(
    what: &'static str,
    dims: &[usize],
    values: &'v [f32],
) -> Result<ArrayView<'v, f32, D>> {
    let rank = || TrainingError::Rank {
        what,
        shape: dims.to_vec(),
        expected: if D::NDIM == Some(3) {
            "[samples, channels, positions]"
        } else {
            "a matrix [rows, columns]"
        },
    };
    ArrayView::from_shape(dims, values).and_then(ArrayView::into_dimensionality).map_err(|_| wrap(rank()))
}

/// The value of a loss as what candle keeps of a tensor.
fn stored(value: LossValue) -> (CpuStorage, Shape) {
    match value {
        LossValue::Scalar(value) => (CpuStorage::F32(vec![value as f32]), Shape::from(())),
        LossValue::PerRow(values) => {
            let rows = values.len();
            (CpuStorage::F32(values.into_iter().map(|value| value as f32).collect()), Shape::from(rows))
        }
    }
}

/// The gradient of a loss, times that of its value: one number, or one a row.
fn chained(grad: &Tensor, outer: &Tensor) -> Result<Tensor> {
    if outer.rank() == 0 {
        // as it is behind `loss.backward()`: nothing to multiply, and no copy
        return if outer.to_scalar::<f32>()? == 1.0 { Ok(grad.clone()) } else { grad.broadcast_mul(outer) };
    }
    let mut dims = vec![1; grad.rank()];
    dims[0] = outer.elem_count();
    grad.broadcast_mul(&outer.reshape(dims)?)
}

fn kept(grad: &OnceLock<Tensor>, op: &'static str) -> Result<Tensor> {
    grad.get().cloned().ok_or(candle_core::Error::BackwardNotSupported { op })
}

/// A loss of the student, with everything else as it is. Value and gradient come from one evaluation, in the forward pass.
struct LossOp<E> {
    name: &'static str,
    evaluate: E,
    grad: OnceLock<Tensor>,
}

impl<E> CustomOp1 for LossOp<E>
where
    E: Fn(&[usize], &[f32]) -> Result<(LossValue, Vec<f32>)>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (value, grad) = (self.evaluate)(layout.dims(), slice(storage, layout)?)?;
        // an operation is made for one tensor: nothing was kept before
        self.grad.set(Tensor::from_vec(grad, layout.dims(), &Device::Cpu)?).ok();
        Ok(stored(value))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, outer: &Tensor) -> Result<Option<Tensor>> {
        chained(&kept(&self.grad, self.name)?, outer).map(Some)
    }
}

/// Applies a loss of the student alone.
fn alone<D: Dimension + 'static>(
    name: &'static str,
    student: &Tensor,
    evaluate: impl Fn(ArrayView<'_, f32, D>) -> std::result::Result<LossGrad<D>, DistillError>
    + Send
    + Sync
    + 'static,
) -> Result<Tensor> {
    let evaluate = move |dims: &[usize], values: &[f32]| {
        let LossGrad { value, grad, .. } = evaluate(view(STUDENT, dims, values)?).map_err(wrap)?;
        Ok((value, grad.into_raw_vec_and_offset().0))
    };
    on_cpu(student)?.apply_op1(LossOp { name, evaluate, grad: OnceLock::new() })
}

/// Applies a loss of the student against its teacher.
fn against<D: Dimension + 'static>(
    name: &'static str,
    student: &Tensor,
    teacher: &Tensor,
    evaluate: impl Fn(
        ArrayView<'_, f32, D>,
        ArrayView<'_, f32, D>,
    ) -> std::result::Result<LossGrad<D>, DistillError>
    + Send
    + Sync
    + 'static,
) -> Result<Tensor> {
    let teacher = constant(teacher)?;
    let evaluate = move |dims: &[usize], student: &[f32]| {
        let student = view(STUDENT, dims, student)?;
        let LossGrad { value, grad, .. } =
            read(&teacher, |values| evaluate(student, view(TEACHER, teacher.dims(), values)?).map_err(wrap))?;
        Ok((value, grad.into_raw_vec_and_offset().0))
    };
    on_cpu(student)?.apply_op1(LossOp { name, evaluate, grad: OnceLock::new() })
}

impl DivergenceLoss {
    /// [`evaluate`](Self::evaluate) as an operation of candle, as [`tersor::candle`](crate::candle#losses) describes
    /// it (feature `candle`).
    ///
    /// # Shapes
    /// As there; `labels` is `[rows]`.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions.
    pub fn forward(&self, student: &Tensor, teacher: &Tensor, labels: Option<&Tensor>) -> Result<Tensor> {
        let (loss, labels) = (*self, optional_classes(labels)?);
        against("divergence", student, teacher, move |student, teacher| {
            loss.evaluate(student, teacher, labels.as_deref().map(Labels::new))
        })
    }
}

impl KnowledgeDistillation {
    /// [`evaluate`](Self::evaluate) as an operation of candle, as [`tersor::candle`](crate::candle#losses) describes
    /// it (feature `candle`).
    ///
    /// # Shapes
    /// As there; `labels` is `[rows]`.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions.
    pub fn forward(&self, student: &Tensor, teacher: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (loss, labels) = (self.clone(), classes(labels)?);
        against("knowledge distillation", student, teacher, move |student, teacher| {
            loss.evaluate(student, teacher, Labels::new(&labels))
        })
    }
}

impl SoftCrossEntropy {
    /// [`evaluate`](Self::evaluate) as an operation of candle, as [`tersor::candle`](crate::candle#losses) describes
    /// it (feature `candle`).
    ///
    /// # Shapes
    /// As there; `labels` is `[rows]`.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions.
    pub fn forward(&self, student: &Tensor, teacher: &Tensor, labels: Option<&Tensor>) -> Result<Tensor> {
        let (loss, labels) = (self.clone(), optional_classes(labels)?);
        against("soft cross-entropy", student, teacher, move |student, teacher| {
            loss.evaluate(student, teacher, labels.as_deref().map(Labels::new))
        })
    }
}

impl CrossEntropy {
    /// [`evaluate`](Self::evaluate) as an operation of candle, as [`tersor::candle`](crate::candle#losses) describes
    /// it (feature `candle`).
    ///
    /// # Shapes
    /// As there; `labels` is `[rows]`.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions.
    pub fn forward(&self, student: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (loss, labels) = (self.clone(), classes(labels)?);
        alone("cross-entropy", student, move |student| loss.evaluate(student, Labels::new(&labels)))
    }
}

impl DecoupledDistillation {
    /// [`evaluate`](Self::evaluate) as an operation of candle, as [`tersor::candle`](crate::candle#losses) describes
    /// it (feature `candle`).
    ///
    /// # Shapes
    /// As there; `labels` is `[rows]`.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions.
    pub fn forward(&self, student: &Tensor, teacher: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (loss, labels) = (*self, classes(labels)?);
        against("decoupled distillation", student, teacher, move |student, teacher| {
            loss.evaluate(student, teacher, Labels::new(&labels))
        })
    }
}

impl CosineDistance {
    /// [`evaluate`](Self::evaluate) as an operation of candle, as [`tersor::candle`](crate::candle#losses) describes
    /// it (feature `candle`).
    ///
    /// # Shapes
    /// As there; `labels` is `[rows]`.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions.
    pub fn forward(&self, student: &Tensor, teacher: &Tensor, labels: Option<&Tensor>) -> Result<Tensor> {
        let (loss, labels) = (*self, optional_classes(labels)?);
        against("cosine distance", student, teacher, move |student, teacher| {
            loss.evaluate(student, teacher, labels.as_deref().map(Labels::new))
        })
    }
}

impl AttentionTransfer {
    /// [`evaluate`](Self::evaluate) as an operation of candle, as [`tersor::candle`](crate::candle#losses) describes
    /// it (feature `candle`).
    ///
    /// # Shapes
    /// As there.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions.
    pub fn forward(&self, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        let loss = *self;
        against("attention transfer", student, teacher, move |student, teacher| {
            loss.evaluate(student, teacher)
        })
    }
}

impl RelationalDistillation {
    /// [`evaluate`](Self::evaluate) as an operation of candle, as [`tersor::candle`](crate::candle#losses) describes
    /// it (feature `candle`).
    ///
    /// # Shapes
    /// As there.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions.
    pub fn forward(&self, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        let loss = *self;
        against("relational distillation", student, teacher, move |student, teacher| {
            loss.evaluate(student, teacher)
        })
    }
}

impl MeanSquaredError {
    /// [`evaluate`](Self::evaluate) as an operation of candle, as [`tersor::candle`](crate::candle#losses) describes
    /// it (feature `candle`).
    ///
    /// # Shapes
    /// As there; `labels` is `[rows]`.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions.
    pub fn forward(&self, student: &Tensor, teacher: &Tensor, labels: Option<&Tensor>) -> Result<Tensor> {
        let (loss, labels) = (*self, optional_classes(labels)?);
        against("squared error", student, teacher, move |student, teacher| {
            loss.evaluate(student, teacher, labels.as_deref().map(Labels::new))
        })
    }

    /// [`evaluate_projected`](Self::evaluate_projected) as an operation of candle, with gradients to the student and to the
    /// projection (feature `candle`).
    ///
    /// # Shapes
    /// As there; `labels` is `[rows]`.
    ///
    /// # Errors
    /// As there, or when a tensor has another number of dimensions. Of the projection's gradient no rows can be told apart: with
    /// [`Reduction::None`](crate::distill::Reduction::None) the backward pass fails unless all rows get the same gradient.
    pub fn forward_projected(
        &self,
        student: &Tensor,
        projection: &Tensor,
        teacher: &Tensor,
        labels: Option<&Tensor>,
    ) -> Result<Tensor> {
        let op = ProjectedOp {
            loss: *self,
            teacher: constant(teacher)?,
            labels: optional_classes(labels)?,
            grads: OnceLock::new(),
        };
        on_cpu(student)?.apply_op2(&on_cpu(projection)?, op)
    }
}

/// The squared error through a projection.
struct ProjectedOp {
    loss: MeanSquaredError,
    teacher: Tensor,
    labels: Option<Vec<i64>>,
    /// Of the student and of the projection.
    grads: OnceLock<(Tensor, Tensor)>,
}

impl CustomOp2 for ProjectedOp {
    fn name(&self) -> &'static str {
        "projected squared error"
    }

    fn cpu_fwd(
        &self,
        student: &CpuStorage,
        student_layout: &Layout,
        projection: &CpuStorage,
        projection_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (student_dims, projection_dims) = (student_layout.dims(), projection_layout.dims());
        let student: ArrayView2<f32> = view(STUDENT, student_dims, slice(student, student_layout)?)?;
        let projection: ArrayView2<f32> =
            view(PROJECTION, projection_dims, slice(projection, projection_layout)?)?;
        let out = read(&self.teacher, |teacher| {
            let teacher = view(TEACHER, self.teacher.dims(), teacher)?;
            let labels = self.labels.as_deref().map(Labels::new);
            self.loss.evaluate_projected(student, projection, teacher, labels).map_err(wrap)
        })?;
        let tensor = |values: ndarray::Array2<f32>, dims: &[usize]| {
            Tensor::from_vec(values.into_raw_vec_and_offset().0, dims, &Device::Cpu)
        };
        let grads = (tensor(out.loss.grad, student_dims)?, tensor(out.projection_grad, projection_dims)?);
        self.grads.set(grads).ok();
        Ok(stored(out.loss.value))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        outer: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let op = CustomOp2::name(self);
        let (student, projection) =
            self.grads.get().ok_or(candle_core::Error::BackwardNotSupported { op })?;
        let shared = if outer.rank() == 0 { outer.clone() } else { one_factor(outer)? };
        Ok((Some(chained(student, outer)?), Some(chained(projection, &shared)?)))
    }
}

/// The gradient that all rows share.
fn one_factor(outer: &Tensor) -> Result<Tensor> {
    let rows = outer.to_vec1::<f32>()?;
    match rows.iter().position(|factor| *factor != rows[0]) {
        Some(row) => candle_core::bail!(
            "row {row} of a projected loss gets the gradient {}, and row 0 gets {}: the projection's gradient is that of \
             the sum over rows, so reduce the loss by `Mean` or `Sum`, or weight the rows before",
            rows[row],
            rows[0]
        ),
        None => outer.get(0),
    }
}
