//! Times the centroids of a matrix of `f32`: prints seconds and centroids as JSON, for `benches/peers/kmeans.py`.
//!
//! ```text
//! cargo run --release --example time_kmeans -- FILE.safetensors [CLUSTERS]
//! ```

use std::time::Instant;

use tersor::Checkpoint;
use tersor::kernels::kmeans::{Start, centroids, nearest};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: time_kmeans FILE.safetensors [CLUSTERS]")?;
    let clusters = args.next().map_or(Ok(16), |text| text.parse())?;
    let checkpoint = Checkpoint::open(path)?;
    let entry = checkpoint.entries().first().ok_or("no tensors")?;
    let values = checkpoint.dense(&entry.name)?;
    let mut codes = vec![0; values.len()];
    let (mut best, mut with_codes, mut found) = (f64::INFINITY, f64::INFINITY, Vec::new());
    for _ in 0..3 {
        let start = Instant::now();
        found = centroids(&values, None, clusters, Start::Optimal)?;
        best = best.min(start.elapsed().as_secs_f64());
        nearest(&values, &found, &mut codes);
        with_codes = with_codes.min(start.elapsed().as_secs_f64());
    }
    let result = serde_json::json!({"seconds": best, "seconds_with_codes": with_codes, "centroids": found});
    println!("{result}");
    Ok(())
}
