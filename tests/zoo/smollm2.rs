//! SmolLM2-135M-Instruct, whose weights come from a 4-bit file (`fixtures/golden/zoo/README.md`).

use std::path::Path;

use libtest_mimic::Failed;
use ndarray::Array2;
use tersor::{Checkpoint, LanguageModel, Tokenizer, Windows};

use crate::networks::{Golden, check_close, decoder, greedy};
use crate::scores::{FLOAT, perplexity, text, tokens};
use crate::{Add, check, check_near};

pub(crate) fn add(add: &mut Add<'_>) {
    add("smollm2_logits", logits, "");
    add("smollm2_greedy", greedy, "");
    add("smollm2_perplexity", wikitext, "");
}

fn logits(folder: &Path, _: &str) -> Result<(), Failed> {
    let golden = Golden::of("smollm2")?;
    let ids = golden.ids("ids")?;
    let about = golden.about()?;
    let words =
        Tokenizer::of(&Checkpoint::open(folder)?)?.encode(about["text"].as_str().ok_or("no text")?, false)?;
    check(words[..64] == ids, || format!("tokens: {words:?}, not {ids:?}"))?;
    let logits = decoder(folder)?.logits(&ids)?;
    let (positions, tokens) = (golden.ids("positions")?, golden.ids("tokens")?);
    check(positions.len() == 16 && tokens.len() == 256, || "another golden".into())?;
    let some = Array2::from_shape_fn((16, 256), |(i, j)| logits[(positions[i] as usize, tokens[j] as usize)]);
    check_close("logits", some.view(), golden.floats("logits")?.view(), 1e-3)?;
    let (sums, argmax) = (golden.floats("logsumexp")?, golden.ids("argmax")?);
    check(sums.len() == 64 && argmax.len() == 64, || "another golden".into())?;
    for (position, row) in logits.rows().into_iter().enumerate() {
        let sum = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let expected = f64::from(sums[(0, position)]);
        check((sum - expected).abs() <= 1e-3, || format!("logsumexp {position}: {sum}, not {expected}"))?;
        let best = (0..row.len()).fold(0, |a, b| if row[b] > row[a] { b } else { a });
        check(best == argmax[position] as usize, || format!("argmax {position}: {best}"))?;
    }
    Ok(())
}

fn wikitext(folder: &Path, _: &str) -> Result<(), Failed> {
    let zoo = std::env::var_os("TERSOR_ZOO").ok_or("the text lies in TERSOR_ZOO, which is not set")?;
    let checkpoint = Checkpoint::open(folder)?;
    let ids = tokens(&checkpoint, &text(&Path::new(&zoo).join("text/wikitext2-test.txt"))?, 18_438_876)?;
    let (value, samples) = perplexity(&checkpoint, FLOAT, &[ids], Windows::of(512))?;
    check_near("perplexity", value, 30.358_88, 2e-4)?;
    check(samples == 4088, || format!("{samples} scores"))
}
