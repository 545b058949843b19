//! Reports through the public API: the verdict, the page, and the JSON against its documentation.

mod synthetic;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use synthetic::{decoder, score};
use tersor::report::NotCompared;
use tersor::{Better, Comparison, Keep, Pricing};

/// The JSON that is embedded in a page.
fn embedded(page: &str) -> Value {
    let (_, rest) = page.split_once(r#"<script type="application/json" id="comparison">"#).unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

/// Nothing is loaded: no address, no element that could load, no name that became an element.
fn assert_self_contained(text: &str) {
    let without_names = text.replace("http://www.w3.org/2000/svg", "");
    for part in
        ["http://", "https://", "<link", "<img", "<iframe", "url(", "@import", "<script>", " src=", "onload"]
    {
        assert!(!without_names.contains(part), "{part}");
    }
}

#[test]
fn a_page_of_a_large_model() {
    let mut comparison = decoder();
    comparison.price(Pricing::new(0.34).unwrap().currency("EUR").volume(1e11).unwrap());
    comparison.keep("90%".parse().unwrap());
    let page = comparison.to_html().unwrap();
    assert_self_contained(&page);
    let json: Value = serde_json::from_str(&serde_json::to_string(&comparison).unwrap()).unwrap();
    assert!(embedded(&page) == json);
    for part in
        ["prefers-color-scheme", "<!DOCTYPE html>", "lang=\"en\"", "scope=\"col\"", "scope=\"row\"", "<desc"]
    {
        assert!(page.contains(part), "{part}");
    }
    for variant in &comparison.variants {
        assert!(page.contains(&variant.name.replace('<', "&lt;").replace('>', "&gt;")), "{}", variant.name);
    }
    // to be looked at in a browser
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(folder.join("decoder.html"), &page).unwrap();
    let plots = comparison.plots();
    let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["quality-size.svg", "quality-latency.svg", "blocks.svg", "layers.svg"]);
    for (name, svg) in &plots {
        assert!(svg.starts_with(r#"<svg xmlns="http://www.w3.org/2000/svg" class="plot""#), "{name}");
        assert!(svg.contains("<style>") && svg.trim_end().ends_with("</svg>"), "{name}");
        assert_self_contained(svg);
        std::fs::write(folder.join(name), svg).unwrap();
    }
    // 30 blocks of 7 layers in 8 panels, and 9 + 2 boxes of the legend
    assert_eq!(plots[2].1.matches("<rect class=\"e").count(), 30 * 7 * 8 + 9 + 1);
}

#[test]
fn the_verdict_on_perplexity() {
    let mut comparison = decoder();
    comparison.price(Pricing::new(0.36).unwrap().currency("EUR").volume(1e9).unwrap());
    comparison.keep("90%".parse().unwrap());
    // at most 15.3 / 0.9 = 17: int8, fp8, int6 and int4-g32-mse reach it, of which the last gives most tokens a second
    let verdict = &comparison.verdicts[0];
    assert_eq!((verdict.threshold, verdict.variant), (Some(15.3 / 0.9), Some(5)));
    // 0.36 / 3600 / 68 · 10⁶ = 1.4706; 68 / 24 = 2.83; (0.36 / 3600 / 24 − 0.36 / 3600 / 68) · 10⁹ = 2696
    assert_eq!(
        verdict.sentence,
        "`SmolLM2-135M-int4-g32-mse` is the cheapest that keeps 90 % of perplexity (16.88 of 15.30): 1.47 EUR per million \
         tokens, 2.8× cheaper than `SmolLM2-135M`, saves 2,696 EUR a year at 1e9 tokens. Its 95 % interval, 16.54 to \
         17.22, lies on both sides of the limit 17.00: 512 samples do not settle it."
    );
    // 15.3 / 0.999 = 15.3153: none
    comparison.keep(Keep::new(0.999).unwrap());
    let verdict = &comparison.verdicts[0];
    assert_eq!(verdict.variant, None);
    assert!(
        verdict.sentence.starts_with(
            "No variant keeps 99.9 % of perplexity; the closest is `SmolLM2-135M-int8` with 15.33 of 15.30. \
             `SmolLM2-135M-int8`, `SmolLM2-135M-fp8`, `SmolLM2-135M-int6` miss the limit 15.32, but their intervals"
        ),
        "{}",
        verdict.sentence
    );
}

/// Replaces the scores of the decoder's source and its first two variants, and drops the others.
fn scored(metric: &str, better: Better, values: [f64; 3]) -> Comparison<'static> {
    let mut comparison = decoder();
    comparison.variants.truncate(3);
    for (variant, value) in comparison.variants.iter_mut().zip(values) {
        variant.scores = vec![score("task", metric, value, "", better, 0.0)];
    }
    comparison
}

#[test]
fn the_verdict_without_a_price_and_where_there_is_none() {
    // the higher the better: 0.8205 · 0.99 = 0.8123; both have the same size, so the first
    let mut comparison = scored("spearman", Better::Higher, [0.8205, 0.8199, 0.81]);
    comparison.keep("0.99".parse().unwrap());
    assert_eq!(comparison.verdicts[0].variant, Some(1));
    let sentence = &comparison.verdicts[0].sentence;
    assert!(
        sentence.starts_with(
            "`SmolLM2-135M-int8` is the smallest that keeps 99 % of spearman (0.8199 of 0.8205): "
        )
    );
    assert!(!sentence.contains("interval"), "{sentence}");
    // a price without a score of throughput
    comparison.price(Pricing::new(1.0).unwrap());
    comparison.keep("99%".parse().unwrap());
    assert!(comparison.verdicts[0].sentence.ends_with("there is no score of throughput."));
    // no part of 0
    let mut comparison = scored("kl", Better::Lower, [0.0, 0.1, 0.2]);
    comparison.keep("99 %".parse().unwrap());
    assert_eq!((comparison.verdicts[0].threshold, comparison.verdicts[0].variant), (None, None));
    assert!(comparison.verdicts[0].sentence.starts_with("No part of kl can be kept: `SmolLM2-135M` has 0"));
    // time is no quality
    let mut comparison = scored("latency_p50", Better::Lower, [1.0; 3]);
    comparison.keep("99%".parse().unwrap());
    assert!(comparison.verdicts[0].sentence.starts_with("Nothing can be said about quality"));
    for text in ["99", "0", "-5%", "101%", "much", "", "NaN", "inf%"] {
        let error = text.parse::<Keep>().unwrap_err().to_string();
        assert!(error.contains("99%") && error.contains(&format!("`{text}`")), "{error}");
    }
}

/// Every key of the JSON, with `[]` for the items of a list.
fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                keys(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, &format!("{path}[]"), found)),
        _ => {}
    }
}

#[test]
fn every_key_of_the_json_is_documented_and_every_documented_key_is_there() {
    let mut comparison = decoder();
    comparison.data = comparison.variants[0].files.clone();
    comparison.variants[1].not_compared = vec![NotCompared { name: "a".into(), reason: "b".into() }];
    comparison.price(Pricing::new(1.0).unwrap().volume(1e6).unwrap());
    comparison.keep("99%".parse().unwrap());
    let mut found = BTreeSet::new();
    keys(&serde_json::to_value(&comparison).unwrap(), "", &mut found);
    // as far as a layer has the same keys, they are described once
    let found: BTreeSet<String> =
        found.into_iter().filter(|key| !key.starts_with("variants[].worst_layer.")).collect();
    let text = include_str!("../../docs/report.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<String> = rows.map(|(key, _)| key.to_owned()).collect();
    assert_eq!(found.difference(&documented).collect::<Vec<_>>(), [""; 0], "not documented");
    assert_eq!(documented.difference(&found).collect::<Vec<_>>(), [""; 0], "documented, but not there");
    assert_eq!(comparison.schema, tersor::report::SCHEMA);
}
