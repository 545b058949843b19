/// What can be wrong with the parts of a compressed weight.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// A part has the wrong number of elements.
    #[error("{what}: expected {expected}, got {actual}")]
    Length {
        /// The part.
        what: &'static str,
        /// Elements that the shape asks for.
        expected: usize,
        /// Elements there are.
        actual: usize,
    },
    /// The tensor has more elements than the address space.
    #[error("shape {shape:?} has more elements than this machine can address")]
    TooLarge {
        /// Shape of the tensor.
        shape: Vec<usize>,
    },
    /// A sparse weight that stores next to nothing for a huge matrix.
    #[error(
        "shape {shape:?} has {elements} elements, but only {bytes} bytes store them; so large a sparse weight stores at \
         least a byte for every 4096 elements, so this is no weight, or a corrupt one"
    )]
    Hollow {
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Elements of that shape.
        elements: usize,
        /// Bytes of values, positions, scales and zero points.
        bytes: u64,
    },
    /// A mask of another shape than the weight's matrix.
    #[error("a mask of shape {mask:?} does not fit a weight of shape {weight:?}")]
    MaskShape {
        /// Rows and columns of the mask.
        mask: [usize; 2],
        /// Rows and columns of the weight.
        weight: [usize; 2],
    },
    /// The positions of kept values contradict the layout.
    #[error("row {row}: {reason}")]
    Positions {
        /// The row, counted from 0.
        row: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A scale is NaN, infinite or negative.
    #[error("scale {value} at index {index}")]
    Scale {
        /// Index of the scale, row-major.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// An integer code or zero point that its number of bits cannot hold.
    #[error("{what} {value} at index {index} is not between {low} and {high}")]
    Code {
        /// Code or zero point.
        what: &'static str,
        /// Its index, row-major.
        index: usize,
        /// Its value.
        value: i8,
        /// Smallest code.
        low: i32,
        /// Largest code.
        high: i32,
    },
    /// A code that its codebook has no value for.
    #[error("code {value} at index {index} is beyond the {entries} values of a codebook")]
    CodebookIndex {
        /// Its index, row-major.
        index: usize,
        /// Its value.
        value: u8,
        /// Values of a codebook.
        entries: usize,
    },
    /// A codebook's value is NaN or infinite.
    #[error("codebook value {value} at index {index}")]
    CodebookValue {
        /// Its index over all codebooks.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Codebooks or scales were given to a weight that has none, or others.
    #[error("a weight of {form} does not take {what}")]
    Replacement {
        /// The weight's form.
        form: String,
        /// What was given.
        what: String,
    },
    /// An e4m3 code of NaN.
    #[error("the e4m3 code at index {index} is NaN")]
    NanCode {
        /// Its index, row-major.
        index: usize,
    },
    /// Factors of a rank that their product cannot have.
    #[error(
        "rank {rank} of two factors is not between 1 and the smaller dimension of a {rows} × {cols} matrix"
    )]
    Rank {
        /// The rank.
        rank: usize,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A product that is not implemented for this weight.
    #[error("{reason}")]
    Unsupported {
        /// What is missing.
        reason: String,
    },
    /// Activations whose number of features is not the weight's number of columns.
    #[error("activations of shape {activations:?} do not fit a weight of {cols} input features")]
    Activations {
        /// Shape of the activations.
        activations: [usize; 2],
        /// Columns of the weight.
        cols: usize,
    },
}

impl WeightError {
    pub(crate) fn check_len(what: &'static str, expected: usize, actual: usize) -> Result<(), Self> {
        if expected == actual { Ok(()) } else { Err(Self::Length { what, expected, actual }) }
    }
}
