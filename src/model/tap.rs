use ndarray::ArrayView2;

/// Sees what goes into linear layers while a network runs.
pub trait Tap: Send {
    /// Called before some layers multiply; all of them take the same input.
    ///
    /// `layers` are their names as the checkpoint has them, without `.weight`.
    ///
    /// # Shapes
    /// `input` is `[tokens, in_features]`.
    fn observe(&mut self, layers: &[&str], input: ArrayView2<'_, f32>);

    /// Whether it has seen all that it wants. A run of a single block may then stop, and its hidden states are of no use; a whole
    /// network runs on.
    fn is_done(&self) -> bool {
        false
    }
}

/// A tap that a network does not stop for.
pub(super) struct ToTheEnd<'a>(pub(super) &'a mut dyn Tap);

impl Tap for ToTheEnd<'_> {
    fn observe(&mut self, layers: &[&str], input: ArrayView2<'_, f32>) {
        self.0.observe(layers, input);
    }
}

/// A closure of the names and the input observes.
impl<F: FnMut(&[&str], ArrayView2<'_, f32>) + Send> Tap for F {
    fn observe(&mut self, layers: &[&str], input: ArrayView2<'_, f32>) {
        self(layers, input);
    }
}
