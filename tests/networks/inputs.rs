//! Sequences and sentences that a network cannot take.

use std::ops::ControlFlow;

use tersor::evaluate::{Perplexity, SentencePair, Similarity};
use tersor::{
    Decoder, Encoder, GenerateOptions, LanguageModel, Network, Sampling, SentenceEncoder, Task, Windows,
};

use crate::model::{Model, assert_error};

/// Takes 64 tokens out of 64.
fn decoder() -> Decoder {
    match Model::of("llama").open() {
        Network::Decoder(model) => *model,
        other => panic!("{other:?}"),
    }
}

/// Takes 24 tokens out of 72.
fn encoder() -> Encoder {
    match Model::of("bert").open() {
        Network::Encoder(model) => *model,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_decoder_refuses_what_it_cannot_take() {
    let model = decoder();
    assert_eq!((model.vocab_size(), model.max_tokens(), model.blocks()), (64, 64, 2));
    let (full, more) = (vec![3; 64], vec![3; 65]);
    assert_eq!(model.logits(&full).unwrap().dim(), (64, 64));
    let none = "a sequence needs at least one token";
    let many = "65 tokens are more than the 64 that the model takes";
    let beyond = "token 64 at position 2 is beyond the model's vocabulary of 64";
    for (tokens, says) in
        [(&[][..], none), (&more, many), (&[1, 2, 64, 65], beyond), (&[1, 2, 64], "do not fit")]
    {
        assert_error(model.logits(tokens), &[says]);
        assert_error(model.embed(tokens), &[says]);
        assert_error(model.extend(&mut model.cache(), tokens), &[says]);
        let options = GenerateOptions { max_new_tokens: 1, ..GenerateOptions::default() };
        assert_error(model.generate(tokens, &options, &mut |_| ControlFlow::Continue(())), &[says]);
    }
    assert_error(model.logits(&[u32::MAX]), &["token 4294967295 at position 0"]);
}

#[test]
fn hidden_states_of_another_width_are_refused() {
    let model = decoder();
    let says = ["the input has 31 features, but the network takes 32"];
    let mut narrow = ndarray::Array2::zeros((3, 31));
    assert_error(model.head(narrow.view(), None), &says);
    assert_error(model.run_block(0, &mut narrow, None), &says);
    let model = encoder();
    assert_error(model.run_block(0, &mut narrow, &[3], None), &says);
    let mut hidden = ndarray::Array2::zeros((3, 32));
    for lengths in [&[2][..], &[2, 2], &[], &[usize::MAX, 4]] {
        assert_error(model.run_block(0, &mut hidden, lengths, None), &["3 hidden states for "]);
    }
}

/// No tokens, no hidden states: that is not an error, and gives none.
#[test]
fn nothing_in_gives_nothing_out() {
    let mut none = ndarray::Array2::zeros((0, 32));
    let model = decoder();
    model.run_block(0, &mut none, None).unwrap();
    assert_eq!(model.head(none.view(), None).unwrap().dim(), (0, 64));
    let model = encoder();
    assert_eq!(model.embed(&[]).unwrap().dim(), (0, 32));
    assert_eq!(model.forward(&[], None).unwrap().dim(), (0, 32));
    model.run_block(1, &mut none, &[], None).unwrap();
    model.run_block(1, &mut none, &[0, 0], None).unwrap();
    assert_eq!(none.dim(), (0, 32));
}

#[test]
fn a_cache_is_as_before_after_a_refusal() {
    let model = decoder();
    let tokens: Vec<u32> = (0..64).map(|i| i * 7 % 61).collect();
    let mut cache = model.cache();
    assert!(cache.is_empty());
    model.extend(&mut cache, &tokens[..60]).unwrap();
    for (more, says) in [
        (&[][..], "at least one token"),
        (&[1, 2, 3, 4, 5], "65 tokens are more than the 64"),
        (&[1, 64], "token 64 at position 1"),
    ] {
        assert_error(model.extend(&mut cache, more), &[says]);
        assert_eq!(cache.len(), 60);
    }
    let rest = model.extend(&mut cache, &tokens[60..]).unwrap();
    assert_eq!(cache.len(), 64);
    assert_error(model.extend(&mut cache, &[1]), &["65 tokens are more than the 64"]);
    let whole = model.logits(&tokens).unwrap();
    for (a, b) in rest.iter().zip(whole.row(63)) {
        assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "{a} {b}");
    }
    // one that is used again has forgotten all
    cache.clear();
    assert_eq!(cache.len(), 0);
    let again = model.extend(&mut cache, &tokens[5..9]).unwrap();
    assert_eq!(again, model.extend(&mut model.cache(), &tokens[5..9]).unwrap());
}

/// A cache belongs to the decoder that made it; another is told apart by its blocks and heads.
#[test]
fn a_cache_of_another_network_is_refused() {
    let other = |case: &str| match Model::of(case).open() {
        Network::Decoder(model) => *model,
        other => panic!("{other:?}"),
    };
    let model = decoder();
    let mut fewer = Model::of("llama");
    fewer.config["num_hidden_layers"] = 1.into();
    let Network::Decoder(fewer) = fewer.open() else { panic!() };
    for other in [other("llama-bias"), other("qwen3"), *fewer] {
        let says = ["the cache is of another decoder"];
        assert_error(model.extend(&mut other.cache(), &[1, 2]), &says);
        assert_error(other.extend(&mut model.cache(), &[1, 2]), &says);
    }
    // of the same shape
    assert!(other("qwen2").extend(&mut model.cache(), &[1, 2]).is_ok());
}

#[test]
fn generating_ends_where_the_model_does() {
    let model = decoder();
    let generate = |prompt: &[u32], options: &GenerateOptions| {
        let mut tokens = Vec::new();
        let made = model.generate(prompt, options, &mut |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        });
        made.map(|()| tokens)
    };
    let options = GenerateOptions { max_new_tokens: 100, ..GenerateOptions::default() };
    // the token after the last position can still be told, but not be gone on from
    assert_eq!(generate(&[3; 64], &options).unwrap().len(), 1);
    assert_eq!(generate(&[3; 60], &options).unwrap().len(), 5);
    let none = GenerateOptions::default();
    assert!(generate(&[3; 60], &none).unwrap().is_empty());
    let tokens = generate(&[3, 5], &GenerateOptions { max_new_tokens: 8, ..none.clone() }).unwrap();
    assert_eq!(tokens.len(), 8);
    let stop = GenerateOptions { stop: vec![tokens[3]], ..options.clone() };
    let until = tokens.iter().position(|token| *token == tokens[3]).unwrap();
    assert_eq!(generate(&[3, 5], &stop).unwrap(), tokens[..until]);
    let nonsense = Sampling::Nucleus { temperature: f64::NAN, top_p: 0.5, seed: 1 };
    assert_error(generate(&[3], &GenerateOptions { sampling: nonsense, ..options }), &["temperature of NaN"]);
}

#[test]
fn an_encoder_refuses_what_it_cannot_take() {
    let model = encoder();
    assert_eq!((SentenceEncoder::max_tokens(&model), model.vocab_size()), (24, 72));
    let (full, more) = (vec![3; 24], vec![3; 25]);
    assert_eq!(model.embed(&[&full]).unwrap().dim(), (1, 32));
    for (sentence, says) in [
        (&[][..], "sentence 2 has no tokens"),
        (&more, "sentence 2 has 25 tokens, more than the 24 that the model takes"),
        (&[1, 72], "token 72 at position 1 is beyond the model's vocabulary of 72"),
    ] {
        let sentences = [&[5, 6][..], sentence];
        assert_error(model.embed(&sentences), &[says]);
        assert_error(model.forward(&sentences, None), &[says]);
        assert_error(model.embed_tokens(&sentences), &[says]);
    }
}

/// Enough sentences to be cut into parts, which threads share.
#[test]
fn an_error_in_any_part_of_a_batch_is_given() {
    let model = encoder();
    let good = vec![7u32; 24];
    for bad in [0, 57, 99] {
        let mut sentences: Vec<&[u32]> = vec![&good; 100];
        assert_eq!(model.embed(&sentences).unwrap().dim(), (100, 32));
        sentences[bad] = &[3, 100];
        assert_error(model.embed(&sentences), &["token 100 at position 1"]);
    }
}

/// What a tokenizer of a larger vocabulary gives.
#[test]
fn tasks_refuse_tokens_beyond_the_vocabulary() {
    let text = Perplexity { texts: vec![vec![1, 2, 64, 3]], windows: Windows::of(4) };
    let beyond = ["token id 64 at position 2", "vocabulary of 64", "tokenizer and model do not fit"];
    assert_error(text.score(&decoder()), &beyond);
    let pair = |token| SentencePair { tokens: [vec![1, token], vec![2, 3]], similarity: f64::from(token) };
    let pairs = Similarity { pairs: [5, 6, 7, 72].map(pair).to_vec() };
    assert_error(pairs.score(&encoder()), &["token 72 at position 1", "vocabulary of 72"]);
}
