//! Looks at what goes into every linear layer of a transformer, and says which layers lose most when it is rounded to 8 bits.
//!
//! ```text
//! cargo run --release --example inspect_layers -- MODEL [TEXT.txt [OUT]]
//! ```
//!
//! MODEL is a Hugging Face folder of an encoder like BERT or a decoder like LLaMA; TEXT.txt, of which the first 256 tokens are
//! read, is a little story unless given. The table is printed, the layer that loses most first, and written to
//! `OUT/layers.csv`, by default in `target/inspect_layers`. Of each layer's input it shows
//!
//! * `largest` and `mean`: of the magnitudes |x|;
//! * `kurtosis`: E(x − μ)⁴ / σ⁴, 3 for a normal distribution; rounding suffers from what is large and rare;
//! * `outlier`: the channel with the largest magnitude, and how many times larger that is than a channel's largest is on
//!   average;
//! * `loss`: ‖y − ŷ‖ / ‖y‖, where y is the product of the input with the weight in 8 bits, and ŷ the same after rounding each
//!   token's activations to 8 bits too.
//!
//! For stories260K, a decoder of 5 blocks with 64 channels:
//!
//! ```text
//! layer                             largest    mean   kurtosis     outlier    loss
//! ────────────────────────────────────────────────────────────────────────────────
//! model.layers.0.mlp.down_proj         3.88   0.103       86.4   114: 3.5×   2.85%
//! model.layers.2.mlp.down_proj         6.92   0.154       57.3    15: 4.7×   1.98%
//! model.layers.3.mlp.down_proj         5.74   0.233       26.8    67: 2.7×   1.94%
//! model.layers.1.mlp.down_proj         4.26   0.131       37.3     6: 3.2×   1.83%
//! model.layers.4.mlp.down_proj         9.37   0.326       24.0    33: 3.0×   1.81%
//! model.layers.1.self_attn.v_proj      8.62   0.949        6.2    20: 2.7×   1.08%
//! model.layers.3.self_attn.v_proj      8.94   0.928        5.7    35: 2.7×   1.04%
//! model.layers.2.self_attn.v_proj      7.26   0.913        5.5    18: 2.3×   1.04%
//! model.layers.4.self_attn.v_proj      6.63   0.916        4.3    35: 2.1×   1.00%
//! model.layers.4.self_attn.o_proj      2.18   0.262        5.4    17: 1.8×   0.73%
//! …
//! model.layers.0.self_attn.q_proj      5.39   0.882        3.8    18: 2.0×   0.31%
//! model.layers.1.self_attn.k_proj      8.62   0.949        6.2    20: 2.7×   0.29%
//! model.layers.3.self_attn.k_proj      8.94   0.928        5.7    35: 2.7×   0.26%
//! model.layers.0.self_attn.k_proj      5.39   0.882        3.8    18: 2.0×   0.24%
//!
//! 136 tokens; table in target/inspect_layers/layers.csv
//! ```
//!
//! What comes out of the gates, the input of `down_proj`, has the heaviest tails and loses most. The input alone does not decide:
//! `v_proj` loses three times as much as `k_proj`, which takes the same.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ndarray::{ArrayView2, Axis};
use tersor::evaluate::read_text;
use tersor::report::Align;
use tersor::{
    ActivationCodes, Activations, Bits, Checkpoint, Execution, Layer, Method, Network, PackedWeight,
    Precision, RoundToNearest, Table, Tokenizer, WeightErrors, one_line,
};

const NEEDED: &str = "needs MODEL [TEXT.txt [OUT]]: any Hugging Face folder of an encoder like BERT or a decoder like LLaMA \
    with its tokenizer.json, such as sentence-transformers/all-MiniLM-L6-v2";

const TOKENS: usize = 256;
const STORY: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, \
    she saw a big, red ball. She wanted to play with it, but it was too high. Lily's mom said, \"Lily, let's go to the \
    park.\" Lily was sad and did not know what to do. Then a boy came by and threw a stone at the ball, and down it fell.";

/// What was seen of one layer.
struct Seen {
    layer: String,
    input: Input,
    loss: f64,
}

/// How the values of an input are spread.
struct Input {
    largest: f64,
    mean: f64,
    kurtosis: f64,
    outlier: usize,
    outlier_ratio: f64,
}

fn run(arguments: &[PathBuf]) -> Result<(), Box<dyn Error + Send + Sync>> {
    let [model, rest @ ..] = arguments else { return Err(NEEDED.into()) };
    let (text, out) = match rest {
        [] => (STORY.to_owned(), Path::new("target/inspect_layers")),
        [text] => (read_text(text)?, Path::new("target/inspect_layers")),
        [text, out] => (read_text(text)?, out.as_path()),
        _ => return Err(NEEDED.into()),
    };
    let checkpoint = Checkpoint::open(model)?;
    let tokens = Tokenizer::of(&checkpoint)?.encode_truncated(&text, TOKENS)?;

    let mut seen = Vec::new();
    let mut tap = |layers: &[&str], input: ArrayView2<'_, f32>| {
        seen.extend(layers.iter().map(|layer| look(&checkpoint, layer, input)));
    };
    match Network::open(&checkpoint, Execution::default())? {
        Network::Encoder(encoder) => encoder.forward(&[&tokens], Some(&mut tap))?,
        Network::Decoder(decoder) => decoder.forward(&tokens, Some(&mut tap))?,
        other => return Err(format!("a tap sees transformers, not a {} network", other.model_type()).into()),
    };
    let mut seen = seen.into_iter().collect::<Result<Vec<_>, _>>()?;
    seen.sort_by(|a, b| b.loss.total_cmp(&a.loss));

    let columns = ["largest", "mean", "kurtosis", "outlier", "loss"].map(|name| (name, Align::Right));
    let mut table = Table::new([("layer", Align::Left)].into_iter().chain(columns));
    for Seen { layer, input, loss } in seen {
        table.row([
            layer.into(),
            format!("{:.2}", input.largest).into(),
            format!("{:.3}", input.mean).into(),
            format!("{:.1}", input.kurtosis).into(),
            format!("{}: {:.1}×", input.outlier, input.outlier_ratio).into(),
            format!("{:.2}%", 100.0 * loss).into(),
        ]);
    }
    let path = out.join("layers.csv");
    fs::create_dir_all(out).map_err(|e| format!("{}: cannot create: {e}", out.display()))?;
    fs::write(&path, table.to_csv()).map_err(|e| format!("{}: cannot write: {e}", path.display()))?;
    println!("{table}\n\n{} tokens; table in {}", tokens.len(), path.display());
    Ok(())
}

/// What there is to see where a layer multiplies.
fn look(
    checkpoint: &Checkpoint,
    layer: &str,
    input: ArrayView2<'_, f32>,
) -> Result<Seen, Box<dyn Error + Send + Sync>> {
    let name = format!("{layer}.weight");
    let values = checkpoint.dense(&name)?;
    let weight = Layer::new(&checkpoint.entry(&name)?.shape, &values, Precision::F32);
    let int8 = RoundToNearest::int(Bits::new(8).ok_or("8 bits are not to be had")?).compress(&weight)?.weight;
    let product = |activations| PackedWeight::new(&int8, activations)?.matmul(input);
    let exact = product(Activations::Float)?;
    let rounded = product(Activations::Int8(ActivationCodes::PerToken))?;
    let (exact, rounded) = (exact.into_raw_vec_and_offset().0, rounded.into_raw_vec_and_offset().0);
    let loss = WeightErrors::between(&exact, &rounded).relative;
    Ok(Seen { layer: layer.to_owned(), input: Input::of(input), loss })
}

impl Input {
    fn of(x: ArrayView2<'_, f32>) -> Self {
        let x = x.mapv(f64::from);
        let mean = x.mean().unwrap_or_default();
        let moment = |power| x.mapv(|x| (x - mean).powi(power)).mean().unwrap_or_default();
        let channels = x.map_axis(Axis(0), |channel| channel.fold(0.0, |max: f64, x| max.max(x.abs())));
        let (outlier, largest) =
            channels.indexed_iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap_or((0, &0.0));
        Self {
            largest: *largest,
            mean: x.mapv(f64::abs).mean().unwrap_or_default(),
            kurtosis: moment(4) / moment(2).powi(2),
            outlier,
            outlier_ratio: largest / channels.mean().unwrap_or_default(),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("inspect_layers: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        // around a mean of 2: the squares 9, 1, 1, 1 and 1, 1, 1, 49; their own 81 … 2401
        let input = Input::of(ndarray::array![[-1.0, 1.0, 1.0, 3.0], [1.0, 1.0, 1.0, 9.0]].view());
        assert_eq!((input.largest, input.mean), (9.0, 18.0 / 8.0));
        // the channels' largest are 1, 1, 1 and 9
        assert_eq!((input.outlier, input.outlier_ratio), (3, 3.0));
        assert_eq!(input.kurtosis, ((81.0 + 6.0 + 2401.0) / 8.0) / (8.0f64 * 8.0));
    }
}
