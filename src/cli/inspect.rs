use serde_json::json;
use tersor::report::inspect_table;
use tersor::{Checkpoint, Stored, TensorClass};

use super::args::InspectArgs;
use super::output::{Output, human};
use super::{Failure, Outcome};

pub(super) fn run(args: &InspectArgs, output: &Output) -> Result<Outcome, Failure> {
    let checkpoint = Checkpoint::open(&args.source)?;
    let entries = checkpoint.entries();
    let files: Vec<_> = checkpoint.files().map(|f| f.display().to_string()).collect();
    let classes: Vec<_> = TensorClass::ALL
        .into_iter()
        .map(|class| (class, entries.iter().filter(move |e| e.class == class)))
        .map(|(class, of_class)| {
            let (mut count, mut elements, mut bytes) = (0u64, 0u64, 0u64);
            for entry in of_class {
                count += 1;
                elements += entry.elements() as u64;
                bytes += entry.bytes;
            }
            (class, count, elements, bytes)
        })
        .filter(|(_, count, ..)| *count > 0)
        .collect();
    let value = json!({
        "source": args.source.display().to_string(),
        "files": files,
        "file_bytes": checkpoint.file_bytes(),
        "classes": classes.iter().map(|(class, count, elements, bytes)| json!({
            "class": class.to_string(), "tensors": count, "elements": elements, "bytes": bytes,
        })).collect::<Vec<_>>(),
        "tensors": entries.iter().map(|e| json!({
            "name": e.name,
            "class": e.class.to_string(),
            "shape": e.shape,
            "dtype": match &e.stored { Stored::Plain(dtype) => Some(format!("{dtype:?}")), Stored::Compressed(_) => None },
            "form": e.describe(),
            "compressed": matches!(e.stored, Stored::Compressed(_)),
            "bytes": e.bytes,
            "file": files[e.file],
            "stored_tensors": e.tensors,
        })).collect::<Vec<_>>(),
    });
    let per_class: Vec<String> = classes
        .iter()
        .map(|(class, count, elements, bytes)| {
            format!("  {class:<10} {count:>5} tensors {elements:>13} elements {:>12}", human(*bytes))
        })
        .collect();
    let summary = format!(
        "\n{}\n{} tensors, {} in {} file{}",
        per_class.join("\n"),
        entries.len(),
        human(checkpoint.file_bytes()),
        files.len(),
        if files.len() == 1 { "" } else { "s" },
    );
    output.print(&value, &inspect_table(entries), &summary)?;
    Ok(Outcome::Done)
}
