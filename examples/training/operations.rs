//! The patches under a kernel and the largest value of each tile, with their gradients, for values laid out as
//! `[channels, height, width, batch]`: candle has them for other layouts, or out of parts that each go through memory once more.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Error, Layout, Result, Shape, Tensor};

/// What lies under a square kernel at each of its places, `[channels · kernel², places, batch]`.
pub(super) fn patches(x: &Tensor, kernel: usize) -> Result<Tensor> {
    let (channels, height, width, batch) = x.dims4()?;
    x.contiguous()?.apply_op1(Patches(Sliding { channels, height, width, batch, kernel }))
}

/// The largest value of each `size` × `size` tile; what is left over at the edges belongs to none.
pub(super) fn max_pool2d(x: &Tensor, size: usize) -> Result<Tensor> {
    x.contiguous()?.apply_op1(MaxPool { size })
}

/// A kernel that slides over images.
#[derive(Clone, Copy)]
struct Sliding {
    channels: usize,
    height: usize,
    width: usize,
    batch: usize,
    kernel: usize,
}

impl Sliding {
    fn places(self) -> (usize, usize) {
        (self.height + 1 - self.kernel, self.width + 1 - self.kernel)
    }

    /// Calls `copy(image, patch, values)` for all runs of values that lie one after the other in the images and in the patches.
    fn runs(self, mut copy: impl FnMut(usize, usize, usize)) {
        let (rows, columns) = self.places();
        let run = columns * self.batch;
        let mut patch = 0;
        for channel in 0..self.channels {
            for (down, right) in
                (0..self.kernel).flat_map(|down| (0..self.kernel).map(move |right| (down, right)))
            {
                for row in 0..rows {
                    copy(
                        ((channel * self.height + row + down) * self.width + right) * self.batch,
                        patch,
                        run,
                    );
                    patch += run;
                }
            }
        }
    }

    fn patches_shape(self) -> (usize, usize, usize) {
        let (rows, columns) = self.places();
        (self.channels * self.kernel * self.kernel, rows * columns, self.batch)
    }

    fn images_shape(self) -> (usize, usize, usize, usize) {
        (self.channels, self.height, self.width, self.batch)
    }
}

struct Patches(Sliding);

impl CustomOp1 for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (images, shape) = (values(storage, layout)?, Shape::from(self.0.patches_shape()));
        let mut patches = Vec::with_capacity(shape.elem_count());
        self.0.runs(|image, _, values| patches.extend_from_slice(&images[image..image + values]));
        Ok((CpuStorage::F32(patches), shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient.contiguous()?.apply_op1_no_bwd(&SumOfPatches(self.0))?))
    }
}

/// Adds up at each pixel what lies at it in the patches.
struct SumOfPatches(Sliding);

impl CustomOp1 for SumOfPatches {
    fn name(&self) -> &'static str {
        "sum of patches"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (patches, shape) = (values(storage, layout)?, Shape::from(self.0.images_shape()));
        let mut images = vec![0.0; shape.elem_count()];
        self.0.runs(|image, patch, values| {
            let sums = &mut images[image..image + values];
            sums.iter_mut().zip(&patches[patch..patch + values]).for_each(|(sum, x)| *sum += x);
        });
        Ok((CpuStorage::F32(images), shape))
    }
}

struct MaxPool {
    size: usize,
}

impl MaxPool {
    /// Calls `tile(pooled, images)` for each tile of each channel: where its largest values begin in the result, one of each image of
    /// the batch, and where its pixels do.
    fn tiles(
        &self,
        (channels, height, width, batch): (usize, usize, usize, usize),
        mut tile: impl FnMut(usize, &[usize]),
    ) {
        let (rows, columns) = (height / self.size, width / self.size);
        let mut pixels = Vec::with_capacity(self.size * self.size);
        for channel in 0..channels {
            for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
                pixels.clear();
                for down in 0..self.size {
                    let line = (channel * height + row * self.size + down) * width + column * self.size;
                    pixels.extend((0..self.size).map(|right| (line + right) * batch));
                }
                tile(((channel * rows + row) * columns + column) * batch, &pixels);
            }
        }
    }

    fn pooled_shape(&self, (channels, height, width, batch): (usize, usize, usize, usize)) -> Shape {
        Shape::from((channels, height / self.size, width / self.size, batch))
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (images, dims) = (values(storage, layout)?, layout.shape().dims4()?);
        let shape = self.pooled_shape(dims);
        let mut pooled = vec![f32::NEG_INFINITY; shape.elem_count()];
        self.tiles(dims, |at, pixels| {
            let largest = &mut pooled[at..at + dims.3];
            for &pixel in pixels {
                let pixel = &images[pixel..pixel + dims.3];
                largest
                    .iter_mut()
                    .zip(pixel)
                    .for_each(|(largest, x)| *largest = if *x > *largest { *x } else { *largest });
            }
        });
        Ok((CpuStorage::F32(pooled), shape))
    }

    fn bwd(&self, x: &Tensor, pooled: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let way = ToLargest { size: self.size, pooled: pooled.contiguous()? };
        Ok(Some(x.contiguous()?.apply_op2_no_bwd(&gradient.contiguous()?, &way)?))
    }
}

/// Gives the gradient of each largest value to the first pixel that has it.
struct ToLargest {
    size: usize,
    pooled: Tensor,
}

impl CustomOp2 for ToLargest {
    fn name(&self) -> &'static str {
        "gradient of max pool"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        of_x: &Layout,
        gradient: &CpuStorage,
        of_gradient: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (images, dims) = (values(x, of_x)?, of_x.shape().dims4()?);
        let gradient = values(gradient, of_gradient)?;
        let pooled = self.pooled.flatten_all()?.to_vec1::<f32>()?;
        let mut result = vec![0.0; images.len()];
        let mut open = vec![0.0; dims.3];
        MaxPool { size: self.size }.tiles(dims, |at, pixels| {
            open.copy_from_slice(&gradient[at..at + dims.3]);
            for &pixel in pixels {
                let largest = pooled[at..at + dims.3].iter().zip(&images[pixel..pixel + dims.3]);
                let ways = open.iter_mut().zip(&mut result[pixel..pixel + dims.3]);
                for ((largest, x), (open, result)) in largest.zip(ways) {
                    let takes = if largest == x { 1.0 } else { 0.0 };
                    *result = takes * *open;
                    *open -= *result;
                }
            }
        });
        Ok((CpuStorage::F32(result), of_x.shape().clone()))
    }
}

/// The values of a contiguous tensor.
fn values<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<&'s [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => Err(Error::RequiresContiguous { op: "training" }.bt()),
    }
}
