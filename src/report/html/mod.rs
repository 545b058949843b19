//! The report as one page that needs nothing but a browser.

mod tables;
mod words;

use std::fmt::Write;

use super::escape::{escape, json_in_html};
use super::plot::{self, Drawing};
use super::{Comparison, Table, Variant};
use tables::{element, region};

const STYLE: &str = include_str!("style.css");

impl Comparison<'_> {
    /// The report as a page of HTML: the answer in words, plots, tables, how every variant was made, and the same as JSON.
    /// It loads nothing, and is readable in light and dark, on narrow windows, on paper and by a screen reader.
    ///
    /// # Errors
    /// When the comparison cannot be written as JSON.
    pub fn to_html(&self) -> serde_json::Result<String> {
        let json = json_in_html(&serde_json::to_string(self)?);
        let names: Vec<&str> = self.references().map(|(_, variant)| variant.name.as_str()).collect();
        let title = escape(&format!("What compression costs: {}", names.join(", ")));
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
             <style>\n{STYLE}{}</style>\n</head>\n<body>\n<main>\n",
            plot::STYLE
        );
        self.head(&mut page);
        section(&mut page, "Summary", &region("Summary", &tables::html(&self.table())));
        self.figures(&mut page);
        if let Some((note, table)) = tables::costs(self) {
            let body =
                format!("{}{}", region("Cost", &tables::html(&table)), element("p", "note", &escape(&note)));
            section(&mut page, "Cost", &body);
        }
        section(&mut page, "How each was made", &self.plans());
        section(&mut page, "Where and with what", &self.environment());
        section(&mut page, "Everything measured", &self.details());
        let _ = write!(
            page,
            "</main>\n<script type=\"application/json\" id=\"comparison\">{json}</script>\n</body>\n</html>\n"
        );
        Ok(page)
    }

    fn head(&self, page: &mut String) {
        let names: Vec<String> = self
            .references()
            .map(|(_, v)| format!("<span class=\"model\">{}</span>", escape(&v.name)))
            .collect();
        let _ = writeln!(
            page,
            "<header>\n<p class=\"kicker\">What compression costs</p>\n<h1>{}</h1>",
            names.join(", ")
        );
        for paragraph in words::answers(self) {
            let _ = writeln!(page, "<p class=\"answer\">{}</p>", words::with_code(&paragraph));
        }
        let environment = &self.environment;
        let threads = if environment.threads == 1 { "thread" } else { "threads" };
        let facts = [
            environment.date.replace('T', " ").replace('Z', " UTC"),
            environment.cpu.clone().unwrap_or_else(|| environment.arch.clone()),
            format!("{} {threads}", environment.threads),
            format!("tersor {}", environment.tersor),
        ];
        let _ = writeln!(page, "<p class=\"facts\">{}</p>\n</header>", escape(&facts.join(" · ")));
    }

    fn figures(&self, page: &mut String) {
        let several = self.references().count() > 1;
        for (place, reference) in self.references() {
            let drawings = plot::figures_of(self, place);
            if drawings.is_empty() {
                continue;
            }
            let is_scatter = |drawing: &&Drawing| drawing.name.starts_with("quality");
            let of = if several { format!(": {}", reference.name) } else { String::new() };
            for (heading, scatter) in
                [("Quality against size and time", true), ("Error of every layer", false)]
            {
                let body: String = drawings.iter().filter(|d| is_scatter(d) == scatter).map(figure).collect();
                if !body.is_empty() {
                    section(page, &format!("{heading}{of}"), &body);
                }
            }
        }
    }

    fn plans(&self) -> String {
        let mut body = String::new();
        for variant in &self.variants {
            let Some(made) = &variant.made else {
                let what = if variant.reference.is_none() {
                    "is what the others are compared with"
                } else {
                    "has no tersor.json that would tell"
                };
                let _ = writeln!(body, "<p class=\"plain\"><b>{}</b> {what}.</p>", escape(&variant.name));
                continue;
            };
            let inner = format!(
                "{}{}",
                region(&format!("Steps of {}", variant.name), &tables::html(&tables::steps(made))),
                folded(
                    &format!("{} tensors", made.tensors.len()),
                    "",
                    &region(&format!("Tensors of {}", variant.name), &tables::html(&tables::made(made)))
                )
            );
            body.push_str(&folded(&variant.name, &words::made(made), &inner));
        }
        body
    }

    fn environment(&self) -> String {
        format!(
            "{}{}",
            region("Environment", &tables::html(&tables::environment(&self.environment))),
            region("Files", &tables::html(&tables::files(self)))
        )
    }

    fn details(&self) -> String {
        let mut body = String::new();
        if let Some(scores) = tables::scores(self) {
            body.push_str(&folded(
                "Scores",
                "with 95 % intervals",
                &region("Scores", &tables::html(&scores)),
            ));
        }
        for variant in &self.variants {
            if !variant.layers.is_empty() {
                let table = tables::html(&tables::layers(variant));
                let note = format!("{} tensors held against the source", variant.layers.len());
                body.push_str(&folded(&variant.name, &note, &region(&layers_of(variant), &table)));
            }
            if !variant.not_compared.is_empty() {
                let mut table = Table::new([("tensor", super::Align::Left), ("why", super::Align::Left)]);
                for left_out in &variant.not_compared {
                    table.row([left_out.name.clone().into(), left_out.reason.clone().into()]);
                }
                let note = format!("{} tensors not compared", variant.not_compared.len());
                body.push_str(&folded(&variant.name, &note, &region(&note, &tables::html(&table))));
            }
        }
        body.push_str(
            "<p class=\"note\">The same as JSON, schema 2, stands in this page in the element <code>comparison</code>.</p>\n",
        );
        body
    }
}

fn layers_of(variant: &Variant) -> String {
    format!("Layers of {}", variant.name)
}

fn section(page: &mut String, heading: &str, body: &str) {
    let _ = writeln!(page, "<section>\n<h2>{}</h2>\n{body}</section>", escape(heading));
}

fn figure(drawing: &Drawing) -> String {
    let caption = if drawing.caption.is_empty() {
        String::new()
    } else {
        format!("<figcaption>{}</figcaption>\n", escape(&drawing.caption))
    };
    format!("<figure>\n{}{caption}</figure>\n", region(&drawing.title, &drawing.inline()))
}

/// What is shown on request.
fn folded(title: &str, note: &str, body: &str) -> String {
    format!(
        "<details>\n<summary><b>{}</b> <span>{}</span></summary>\n{body}</details>\n",
        escape(title),
        escape(note)
    )
}
