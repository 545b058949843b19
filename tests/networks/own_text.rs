//! Samples that a decoder draws itself, and texts that go on at the same time.

use std::ops::ControlFlow;

use ndarray::Array2;
use tersor::{Cache, CalibrateError, Decoder, LanguageModel, Network, OwnText};

use crate::model::{Model, assert_error};

/// Takes 64 tokens out of 64.
fn decoder(case: &str) -> Decoder {
    match Model::of(case).open() {
        Network::Decoder(model) => *model,
        other => panic!("{other:?}"),
    }
}

fn draw(model: &Decoder, text: &OwnText) -> Result<Vec<Vec<u32>>, CalibrateError> {
    let samples = text.draw(model, &mut |_| ControlFlow::Continue(()))?;
    Ok(samples.unwrap().sequences().to_vec())
}

fn assert_close(actual: &Array2<f32>, expected: &[&Array2<f32>], position: &[usize]) {
    assert_eq!(actual.dim(), (expected.len(), expected[0].ncols()));
    for ((actual, expected), position) in actual.rows().into_iter().zip(expected).zip(position) {
        for (a, e) in actual.iter().zip(expected.row(*position)) {
            assert!((a - e).abs() <= 2e-5 * (1.0 + e.abs()), "position {position}: {a}, not {e}");
        }
    }
}

/// Texts of different lengths, in models with windows, with norms of heads, and with biases.
#[test]
fn texts_that_go_on_together_are_as_alone() {
    for case in ["llama", "qwen2-window", "qwen3", "llama-bias"] {
        let model = decoder(case);
        let limit = model.max_tokens().min(30);
        let texts: Vec<Vec<u32>> =
            (0..5).map(|text| (0..limit as u32).map(|i| (i * 7 + text * 11 + 3) % 64).collect()).collect();
        let alone: Vec<Array2<f32>> = texts.iter().map(|text| model.logits(text).unwrap()).collect();
        let mut caches: Vec<Cache> = texts.iter().map(|_| model.cache()).collect();
        for (number, (text, cache)) in texts.iter().zip(&mut caches).enumerate() {
            model.extend(cache, &text[..=number * 2]).unwrap();
        }
        for step in 0..limit - 10 {
            let positions: Vec<usize> = caches.iter().map(Cache::len).collect();
            let tokens: Vec<u32> = texts.iter().zip(&positions).map(|(text, at)| text[*at]).collect();
            let logits = model.extend_each(&mut caches, &tokens).unwrap();
            assert_close(&logits, &alone.iter().collect::<Vec<_>>(), &positions);
            assert!(caches.iter().zip(&positions).all(|(cache, before)| cache.len() == before + 1), "{step}");
        }
    }
}

#[test]
fn caches_are_as_before_when_one_text_cannot_go_on() {
    let model = decoder("llama");
    let mut caches = vec![model.cache(); 2];
    model.extend(&mut caches[0], &[5; 64]).unwrap();
    model.extend(&mut caches[1], &[1, 2]).unwrap();
    assert_error(model.extend_each(&mut caches, &[1]), &["1 tokens for 2 caches"]);
    assert_error(model.extend_each(&mut caches, &[1, 2]), &["65 tokens are more than the 64"]);
    assert_error(model.extend_each(&mut caches[1..], &[64]), &["token 64", "vocabulary of 64"]);
    let mut other = vec![model.cache(), decoder("qwen3").cache()];
    assert_error(model.extend_each(&mut other, &[1, 2]), &["the cache is of another decoder"]);
    assert_eq!(caches.iter().chain(&other).map(Cache::len).collect::<Vec<_>>(), [64, 2, 0, 0]);
    let logits = model.extend_each(&mut caches[1..], &[3]).unwrap();
    assert_close(&logits, &[&model.logits(&[1, 2, 3]).unwrap()], &[2]);
    assert_eq!(model.extend_each(&mut [], &[]).unwrap().dim(), (0, 64));
}

#[test]
fn samples_have_the_shape_and_the_seed_that_was_asked_for() {
    let model = decoder("llama");
    let text = OwnText { samples: 7, context: 12, start: vec![1], at_once: 3, seed: 5, ..OwnText::default() };
    let samples = draw(&model, &text).unwrap();
    assert_eq!(samples.iter().map(Vec::len).collect::<Vec<_>>(), [12; 7]);
    assert!(samples.iter().flatten().all(|token| *token < 64));
    // every sample is another
    assert!((1..7).all(|i| !samples[..i].contains(&samples[i])), "{samples:?}");
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| draw(&model, &text)).unwrap(), samples);
    }
    assert_ne!(draw(&model, &OwnText { seed: 6, ..text.clone() }).unwrap(), samples);
    // more of them begin with the same, as far as they are drawn with as many others
    let more = draw(&model, &OwnText { samples: 9, ..text.clone() }).unwrap();
    assert_eq!(more[..6], samples[..6]);

    let mut steps = Vec::new();
    let drawn = text.draw(&model, &mut |tokens| {
        steps.push(tokens);
        ControlFlow::Continue(())
    });
    assert_eq!(drawn.unwrap().unwrap().token_count(), 84);
    let of_each = [3, 3, 1].iter().flat_map(|samples| [*samples; 12]);
    let sums = of_each.scan(0, |sum, tokens| {
        *sum += tokens;
        Some(*sum)
    });
    assert_eq!(steps, sums.collect::<Vec<usize>>());
    let stopped = text.draw(&model, &mut |tokens| {
        if tokens < 9 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(stopped.unwrap().is_none());
}

/// The second token of samples comes as often as the model says it does after the start and the first.
#[test]
fn tokens_come_as_often_as_the_model_says() {
    const SAMPLES: usize = 4000;
    let model = decoder("llama");
    let start = vec![1, 9];
    let text = |samples, temperature, top_p| OwnText {
        samples,
        context: 2,
        start: start.clone(),
        temperature,
        top_p,
        at_once: 64,
        ..OwnText::default()
    };
    let shares_of = |tokens: &[u32], temperature: f64| {
        let logits = model.logits(tokens).unwrap();
        let powers: Vec<f64> =
            logits.row(tokens.len() - 1).iter().map(|x| (f64::from(*x) / temperature).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|p| p / sum).collect::<Vec<f64>>()
    };
    for temperature in [0.25, 1.0] {
        let mut counts = vec![[0.0; 2]; 64];
        for sample in draw(&model, &text(SAMPLES, temperature, 1.0)).unwrap() {
            (0..2).for_each(|at| counts[sample[at] as usize][at] += 1.0 / SAMPLES as f64);
        }
        let first = shares_of(&start, temperature);
        let mut second = vec![0.0; 64];
        for (token, share) in (0u32..).zip(&first) {
            let after = shares_of(&[start[0], start[1], token], temperature);
            second.iter_mut().zip(after).for_each(|(sum, after)| *sum += share * after);
        }
        for (token, counts) in counts.iter().enumerate() {
            for (share, expected) in counts.iter().zip([first[token], second[token]]) {
                let deviation = (expected * (1.0 - expected) / SAMPLES as f64).sqrt();
                assert!(
                    (share - expected).abs() < 4.5 * deviation + 1e-3,
                    "{token} at {temperature}: {share} {expected}"
                );
            }
        }
    }
    // so little that only the likeliest is left
    let likeliest = shares_of(&start, 1.0);
    let likeliest = (0..64).max_by(|a, b| likeliest[*a].total_cmp(&likeliest[*b])).unwrap() as u32;
    assert!(draw(&model, &text(5, 1.0, 1e-9)).unwrap().iter().all(|sample| sample[0] == likeliest));
}

#[test]
fn another_text_begins_where_one_has_ended() {
    let model = decoder("llama");
    let all = (0..64).collect();
    let text =
        OwnText { samples: 3, context: 20, start: vec![7, 9], ends: all, seed: 3, ..OwnText::default() };
    for sample in draw(&model, &text).unwrap() {
        // one token, and the start after it
        assert!(sample.chunks_exact(3).all(|part| part[1..] == [7, 9]), "{sample:?}");
    }
    // the end is the start of the next text
    let both = OwnText { start: vec![7], ends: vec![7], samples: 40, ..text.clone() };
    let none = draw(&model, &OwnText { ends: Vec::new(), ..both.clone() }).unwrap();
    assert!(none.iter().flatten().any(|token| *token == 7));
    assert_eq!(draw(&model, &both).unwrap(), none);
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let model = decoder("llama");
    let text = OwnText { context: 10, start: vec![1], ..OwnText::default() };
    for (text, says) in [
        (OwnText { samples: 0, ..text.clone() }, &["0 samples of 10 tokens"][..]),
        (OwnText { context: 0, ..text.clone() }, &["128 samples of 0 tokens"]),
        (OwnText { at_once: 0, ..text.clone() }, &["0 at once"]),
        (OwnText { start: vec![], ..text.clone() }, &["a token to begin with"]),
        (OwnText { context: 64, ..text.clone() }, &["64 tokens after 1", "the 64 that the model takes"]),
        (OwnText { context: usize::MAX, ..text.clone() }, &["than the 64"]),
        (OwnText { start: vec![64], ..text.clone() }, &["token 64", "vocabulary of 64"]),
        (OwnText { temperature: 0.0, ..text.clone() }, &["temperature of 0"]),
        (OwnText { top_p: 1.5, ..text.clone() }, &["top-p of 1.5"]),
    ] {
        assert_error(draw(&model, &text), says);
    }
    // as long as the model takes
    assert_eq!(draw(&model, &OwnText { context: 63, samples: 1, ..text }).unwrap()[0].len(), 63);
}
