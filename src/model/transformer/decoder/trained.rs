//! What the weights of a block do to what it gives: its backward pass.

use super::super::rope::Rope;
use super::block::{Block, Shape};
use crate::kernels::activate::{activate_gate, add, gate_gradients};
use crate::kernels::attention::{Attention, AttentionGradients, KeyValues, attend};
use crate::kernels::normalize::{rms_norm, rms_norm_gradient};
use crate::kernels::product::ColumnTiles;
use crate::model::linear::Linear;

const LAYERS: usize = TrainedBlock::LAYERS;
const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;
const OUTPUT: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// A block of a decoder whose linear layers multiply with weights that change; normalizations and biases stay as they are.
///
/// All sums are made in an order that depends neither on the instructions nor on the number of threads.
#[derive(Debug)]
pub(crate) struct TrainedBlock<'a> {
    block: &'a Block,
    shape: Shape,
    rope: &'a Rope,
    /// One for each of the block's.
    layers: Vec<Layer>,
}

/// The weight of a layer, arranged for both directions.
#[derive(Debug)]
struct Layer {
    /// `[out, in]`
    shape: [usize; 2],
    /// For `x · Wᵀ`.
    forward: ColumnTiles,
    /// For `dy · W`.
    backward: ColumnTiles,
}

impl Layer {
    fn new(linear: &Linear, weight: &[f32]) -> Self {
        let (rows, cols) = (linear.matrix.rows(), linear.matrix.cols());
        assert_eq!(weight.len(), rows * cols, "weights of {}", linear.name);
        Self {
            shape: [rows, cols],
            forward: ColumnTiles::transposed(weight, cols, rows),
            backward: ColumnTiles::new(rows, cols, |row| &weight[row * cols..][..cols]),
        }
    }
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug)]
struct Tape {
    /// What goes into attention.
    normed: Vec<f32>,
    /// Before they were normalized, if they were.
    raw_query_key: Option<[Vec<f32>; 2]>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    /// The hidden states between attention and the feed-forward layer, and their normalization.
    middle: Vec<f32>,
    normed_middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// What goes into the last layer.
    gated: Vec<f32>,
}

/// What a loss asks of a block.
#[derive(Debug)]
pub(crate) struct Gradients {
    /// With respect to the weights, `[out_features, in_features]`.
    pub(crate) layers: [Vec<f32>; LAYERS],
    /// With respect to what query, key and value give.
    of_attention: AttentionGradients,
    /// With respect to the hidden states between attention and the feed-forward layer, `[tokens, hidden]`.
    of_middle: Vec<f32>,
}

/// Gradients with respect to the weights of a block's layers, summed over samples in the order in which they come.
#[derive(Debug, Default)]
pub(crate) struct GradientSums {
    /// `[out_features, in_features]`; nothing before the first sample.
    pub(crate) layers: [Vec<f32>; LAYERS],
}

impl GradientSums {
    /// Adds those of a sample.
    pub(crate) fn add(&mut self, gradients: Gradients) {
        for (sum, gradient) in self.layers.iter_mut().zip(gradients.layers) {
            if sum.is_empty() { *sum = gradient } else { add(sum, &gradient) }
        }
    }
}

impl TrainedBlock<'_> {
    /// Linear layers of a block.
    pub(crate) const LAYERS: usize = 7;
}

impl<'a> TrainedBlock<'a> {
    /// A block with the weights that `weight` gives by the number and the name, without `.weight`, of a layer.
    ///
    /// # Shapes
    /// Weights are `[out_features, in_features]`.
    ///
    /// # Errors
    /// When `weight` has one.
    ///
    /// # Panics
    /// When a weight has another size.
    pub(super) fn new<E>(
        block: &'a Block,
        shape: Shape,
        rope: &'a Rope,
        mut weight: impl FnMut(&str) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let mut layers = Vec::with_capacity(LAYERS);
        for linear in block.linears() {
            layers.push(Layer::new(linear, &weight(&linear.name)?));
        }
        Ok(Self { block, shape, rope, layers })
    }

    /// The names of the linear layers, without `.weight`.
    pub(crate) fn names(&self) -> [&'a str; LAYERS] {
        self.block.linears().map(|linear| linear.name.as_str())
    }

    /// Gives a layer another weight.
    ///
    /// # Shapes
    /// `weight` is `[out_features, in_features]`.
    ///
    /// # Panics
    /// When it is not, or there is no such layer.
    pub(crate) fn set(&mut self, layer: usize, weight: &[f32]) {
        self.layers[layer] = Layer::new(self.block.linears()[layer], weight);
    }

    /// Gradients with respect to the weights of all layers of a loss, whose gradient with respect to what the block gives is that of
    /// `of_output`.
    ///
    /// # Shapes
    /// `hidden` and what `of_output` takes and gives are `[tokens, hidden]`.
    pub(crate) fn gradients(&self, hidden: &[f32], of_output: impl FnOnce(&[f32]) -> Vec<f32>) -> Gradients {
        let (output, tape) = self.forward(hidden);
        let of_output = of_output(&output);
        let Tape { query, key, value, mut gate, mut up, .. } = tape;

        let of_down = self.weight_gradient(DOWN, &of_output, &tape.gated);
        gate_gradients(self.shape.activation, &mut gate, &mut up, &self.back(DOWN, &of_output));
        let of_gate = self.weight_gradient(GATE, &gate, &tape.normed_middle);
        let of_up = self.weight_gradient(UP, &up, &tape.normed_middle);
        let mut of_middle = self.back(GATE, &gate);
        add(&mut of_middle, &self.back(UP, &up));
        let (norm, epsilon) = (&self.block.feed_forward_norm, self.shape.epsilon);
        rms_norm_gradient(&mut of_middle, &tape.middle, norm, epsilon);
        add(&mut of_middle, &of_output);

        let of_projection = self.weight_gradient(OUTPUT, &of_middle, &tape.attended);
        let attention = Attention {
            queries: &query,
            keys: &key,
            values: &value,
            heads: self.shape.key_value_heads,
            group: self.shape.group(),
            head_dim: self.shape.head_dim,
            scale: self.shape.scale(),
            visible: self.block.visible(0),
        };
        let mut of_attention = attention.gradients(&self.back(OUTPUT, &of_middle));
        let angles = self.rope.angles(0..self.tokens(hidden)).transposed();
        angles.rotate(&mut of_attention.queries, self.shape.heads * self.shape.head_dim);
        angles.rotate(&mut of_attention.keys, self.shape.key_value_heads * self.shape.head_dim);
        if let (Some([of_query, of_key]), Some([query, key])) =
            (&self.block.query_key_norm, &tape.raw_query_key)
        {
            rms_norm_gradient(&mut of_attention.queries, query, of_query, epsilon);
            rms_norm_gradient(&mut of_attention.keys, key, of_key, epsilon);
        }
        let layers = [
            self.weight_gradient(QUERY, &of_attention.queries, &tape.normed),
            self.weight_gradient(KEY, &of_attention.keys, &tape.normed),
            self.weight_gradient(VALUE, &of_attention.values, &tape.normed),
            of_projection,
            of_gate,
            of_up,
            of_down,
        ];
        Gradients { layers, of_attention, of_middle }
    }

    /// The gradient with respect to what goes into the block, from [those](Self::gradients) that were found for it.
    ///
    /// # Shapes
    /// `[tokens, hidden]`.
    pub(crate) fn input_gradient(&self, hidden: &[f32], gradients: &Gradients) -> Vec<f32> {
        let AttentionGradients { queries, keys, values } = &gradients.of_attention;
        let mut of_input = self.back(QUERY, queries);
        add(&mut of_input, &self.back(KEY, keys));
        add(&mut of_input, &self.back(VALUE, values));
        rms_norm_gradient(&mut of_input, hidden, &self.block.input_norm, self.shape.epsilon);
        add(&mut of_input, &gradients.of_middle);
        of_input
    }

    /// What the block gives.
    ///
    /// # Shapes
    /// `[tokens, hidden]`, as what it gives.
    pub(crate) fn run(&self, hidden: &[f32]) -> Vec<f32> {
        self.forward(hidden).0
    }

    fn tokens(&self, hidden: &[f32]) -> usize {
        hidden.len() / self.block.input_norm.len().max(1)
    }

    fn forward(&self, hidden: &[f32]) -> (Vec<f32>, Tape) {
        let (block, shape) = (self.block, self.shape);
        let normalized = |values: &[f32], norm: &[f32]| {
            let mut values = values.to_vec();
            rms_norm(&mut values, norm, shape.epsilon);
            values
        };
        let normed = normalized(hidden, &block.input_norm);
        let (mut query, mut key) = (self.product(QUERY, &normed), self.product(KEY, &normed));
        let value = self.product(VALUE, &normed);
        let raw_query_key = block.query_key_norm.as_ref().map(|[of_query, of_key]| {
            let (of_query, of_key) = (normalized(&query, of_query), normalized(&key, of_key));
            [std::mem::replace(&mut query, of_query), std::mem::replace(&mut key, of_key)]
        });
        let angles = self.rope.angles(0..self.tokens(hidden));
        angles.rotate(&mut query, shape.heads * shape.head_dim);
        angles.rotate(&mut key, shape.key_value_heads * shape.head_dim);
        let mut cache = KeyValues::new(shape.key_value_heads, shape.head_dim);
        cache.append(&key, &value);
        let mut attended = vec![0.0; query.len()];
        attend(&query, &cache, shape.group(), shape.scale(), block.visible(0), &mut attended);
        let mut middle = self.product(OUTPUT, &attended);
        add(&mut middle, hidden);

        let normed_middle = normalized(&middle, &block.feed_forward_norm);
        let (gate, up) = (self.product(GATE, &normed_middle), self.product(UP, &normed_middle));
        let mut gated = gate.clone();
        activate_gate(shape.activation, &mut gated, &up);
        let mut output = self.product(DOWN, &gated);
        add(&mut output, &middle);
        let tape = Tape {
            normed,
            raw_query_key,
            query,
            key,
            value,
            attended,
            middle,
            normed_middle,
            gate,
            up,
            gated,
        };
        (output, tape)
    }

    /// `x · Wᵀ + b`.
    fn product(&self, layer: usize, x: &[f32]) -> Vec<f32> {
        let mut y = self.layers[layer].forward.product(x);
        if let Some(bias) = &self.block.linears()[layer].bias {
            y.chunks_exact_mut(bias.len().max(1)).for_each(|row| add(row, bias));
        }
        y
    }

    /// `dy · W`: the gradient with respect to what goes into a layer.
    fn back(&self, layer: usize, of_output: &[f32]) -> Vec<f32> {
        self.layers[layer].backward.product(of_output)
    }

    /// `dyᵀ · x`: the gradient with respect to the weight.
    fn weight_gradient(&self, layer: usize, of_output: &[f32], input: &[f32]) -> Vec<f32> {
        let [rows, cols] = self.layers[layer].shape;
        let tokens = input.len() / cols.max(1);
        ColumnTiles::new(tokens, cols, |token| &input[token * cols..][..cols])
            .transposed_product(of_output, rows)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ndarray::Array2;

    use super::super::Decoder;
    use super::TrainedBlock;
    use crate::checkpoint::Checkpoint;
    use crate::model::{Execution, ModelError};

    fn values(len: usize, by: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * by % 1009) as f32 / 1009.0 - 0.5) * 2.0).collect()
    }

    /// Of networks with biases, with heads that share keys, with normalized queries and keys, with a window, and with scaled angles.
    #[test]
    fn gradients_are_slopes_of_what_the_block_gives() {
        for name in ["llama-bias", "llama", "qwen3", "qwen2-window", "llama-yarn"] {
            let folder =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/transformers").join(name);
            let checkpoint = Checkpoint::open(folder).unwrap();
            let decoder = Decoder::open(&checkpoint, Execution::default()).unwrap();
            let (tokens, width) = (21, decoder.hidden_size());
            let hidden = values(tokens * width, 389);
            let of_output = values(tokens * width, 571);
            let dense = |layer: &str| Ok::<_, ModelError>(checkpoint.dense(&format!("{layer}.weight"))?);
            let mut trained = decoder.trained_block(1, dense).unwrap();

            let mut expected = Array2::from_shape_vec((tokens, width), hidden.clone()).unwrap();
            decoder.run_block(1, &mut expected, None).unwrap();
            let found = trained.forward(&hidden).0;
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4 * (1.0 + b.abs());
            assert!(found.iter().zip(&expected).all(close), "{name}");

            let loss = |trained: &TrainedBlock<'_>, hidden: &[f32]| dot(&trained.run(hidden), &of_output);
            let gradients = trained.gradients(&hidden, |_| of_output.clone());
            let step = 1.0 / 1024.0;
            for (layer, (layer_name, gradient)) in
                trained.names().into_iter().zip(&gradients.layers).enumerate()
            {
                let weight = dense(layer_name).unwrap();
                let direction = values(weight.len(), 733);
                let mut loss = |by: f32| {
                    trained.set(layer, &moved(&weight, &direction, by));
                    loss(&trained, &hidden)
                };
                let slope = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
                loss(0.0);
                assert_slope(gradient, &direction, slope, &format!("{name} {layer_name}"));
            }
            let direction = values(hidden.len(), 733);
            let [above, below] = [step, -step].map(|by| loss(&trained, &moved(&hidden, &direction, by)));
            let slope = (above - below) / (2.0 * f64::from(step));
            let gradient = trained.input_gradient(&hidden, &gradients);
            assert_slope(&gradient, &direction, slope, &format!("{name}: what goes in"));
        }
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    fn moved(values: &[f32], direction: &[f32], by: f32) -> Vec<f32> {
        values.iter().zip(direction).map(|(value, direction)| value + by * direction).collect()
    }

    fn assert_slope(gradient: &[f32], direction: &[f32], slope: f64, of: &str) {
        let (along, size) = (dot(gradient, direction), dot(gradient, gradient).sqrt());
        assert!((along - slope).abs() < 2e-2 * size.max(along.abs()), "{of}: {along}, not {slope}");
    }
}
