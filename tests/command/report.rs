//! What `compare` writes: a page, plots, what running costs, and which is enough.

use std::fs;

use serde_json::Value;
use tersor::DType;

use crate::args;
use crate::common::Folder;
use crate::models::{decoder, fixtures, folder};
use crate::networks::first_images;
use crate::run::{assert_contains, compressed, names, tersor};

/// The JSON that is embedded in a page.
pub(crate) fn embedded(page: &str) -> Value {
    let (_, rest) = page.split_once(r#"<script type="application/json" id="comparison">"#).unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_page_and_plots_of_what_was_compared() {
    let data = Folder::new();
    let [images, labels] = first_images(&data, 200);
    let source = fixtures().join("fashion-mlp");
    let (_work, output, _) = compressed(&source, &["--preset", "int8"]);
    let hostile = output.parent().unwrap().join("<b>&\"int8\"");
    fs::rename(&output, &hostile).unwrap();
    let reports = Folder::new();
    let (page_path, plots) = (reports.put("report.html", "an earlier one"), reports.path().join("plots"));
    let compare = args!["compare", source, hostile, "--json", "--html", page_path, "--plots", plots];
    let task = args!["--task", "classify,latency", "--batch", "100", "--images", images, "--labels", labels];
    let cost = args!["--price-per-hour", "3.6", "--currency", "EUR", "--volume", "1e6", "--keep", "50%"];
    let json = tersor(compare.into_iter().chain(task).chain(cost)).json();

    let page = fs::read_to_string(&page_path).unwrap();
    assert_eq!(embedded(&page), json);
    assert_contains(
        &page,
        &["fashion-mlp", "&lt;b&gt;&amp;&quot;int8&quot;", "<svg class=\"plot\"", "fc1.weight"],
    );
    for part in ["<b>&\"", "http://", "https://", "<img", "<link", " src="] {
        assert!(!page.contains(part), "{part}");
    }
    assert_eq!(names(reports.path()), ["plots", "report.html"]);
    assert_eq!(names(&plots), ["layers.svg", "quality-latency.svg", "quality-size.svg"]);

    assert_eq!(json["data"].as_array().unwrap().len(), 2);
    assert_eq!(json["data"][1]["bytes"], 208);
    let variant = &json["variants"][1];
    assert_eq!((&variant["reference"], &variant["made"]["steps"][0]["tensors"]), (&0.into(), &3.into()));
    // 3.6 an hour are 10⁻³ a second: 1000 / throughput for a million, which is also a year's volume
    let throughput = variant["cost"]["per_second"].as_f64().unwrap();
    let per_million = variant["cost"]["per_million"].as_f64().unwrap();
    assert!((per_million * throughput / 1000.0 - 1.0).abs() < 1e-9);
    assert!((variant["cost"]["per_year"].as_f64().unwrap() / per_million - 1.0).abs() < 1e-9);
    assert_eq!(json["verdicts"][0]["variant"], 1);
    assert_contains(
        json["verdicts"][0]["sentence"].as_str().unwrap(),
        &["keeps 50 % of accuracy", "EUR per million"],
    );
    // every tensor, not only the worst
    let layers = variant["layers"].as_array().unwrap();
    let named: Vec<&str> = layers.iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(named, ["fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight", "fc3.bias", "fc3.weight"]);
    assert!(layers[0]["sqnr_db"].is_null() && layers[1]["sqnr_db"].as_f64().unwrap() > 30.0);
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_the_work() {
    let source = folder(&decoder(DType::F32), None);
    let work = Folder::new();
    let missing = work.path().join("missing/report.html");
    let compare = |option: &str, path: &std::path::Path| {
        tersor(args!["compare", source.path(), source.path(), option, path]).error(1)
    };
    assert_contains(&compare("--html", &missing), &["missing/report.html: cannot write", "create it first"]);
    assert_contains(&compare("--html", work.path()), &["it is a folder"]);
    assert_contains(&compare("--plots", &missing), &["create it first"]);
    let file = work.put("file", "kept");
    assert_contains(&compare("--plots", &file), &["it is no folder"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    assert_eq!(names(work.path()), ["file"]);
}

#[test]
fn a_manifest_that_tersor_did_not_write_is_refused() {
    let source = folder(&decoder(DType::F32), None);
    for (text, part) in [("nonsense", "no manifest"), (r#"{"layers": {}}"#, "invalid type")] {
        source.put("tersor.json", text);
        let line = tersor(args!["compare", source.path(), source.path()]).error(1);
        assert_contains(&line, &[source.path().to_str().unwrap(), "tersor.json", part]);
    }
}
