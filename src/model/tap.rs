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
}

/// A closure of the names and the input observes.
impl<F: FnMut(&[&str], ArrayView2<'_, f32>) + Send> Tap for F {
    fn observe(&mut self, layers: &[&str], input: ArrayView2<'_, f32>) {
        self(layers, input);
    }
}
