use std::fmt::Write;

use crate::report::escape::escape;

/// The styles of plots, for light and dark.
pub(in crate::report) const STYLE: &str = include_str!("plot.css");

/// A drawing with a title and a description for those who do not see it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::report) struct Drawing {
    /// File name without extension; unique in a report.
    pub(in crate::report) name: String,
    pub(in crate::report) title: String,
    /// What is to be seen, for those who do not see it.
    pub(in crate::report) description: String,
    /// What a reader must know.
    pub(in crate::report) caption: String,
    width: f64,
    height: f64,
    body: String,
}

impl Drawing {
    pub(super) fn new(name: &str, title: String, width: f64, height: f64) -> Self {
        Self {
            name: name.to_owned(),
            title,
            description: String::new(),
            caption: String::new(),
            width,
            height,
            body: String::new(),
        }
    }

    pub(super) fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        let _ = writeln!(
            self.body,
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        );
    }

    pub(super) fn path(&mut self, class: &str, points: &[[f64; 2]]) {
        let steps: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.body, r#"<polyline class="{class}" points="{}"/>"#, steps.join(" "));
    }

    pub(super) fn circle(&mut self, class: &str, [x, y]: [f64; 2], radius: f64, hover: &str) {
        let _ = writeln!(
            self.body,
            r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius}"><title>{}</title></circle>"#,
            escape(hover)
        );
    }

    pub(super) fn diamond(&mut self, class: &str, [x, y]: [f64; 2], r: f64, hover: &str) {
        let points = [[x, y - r], [x + r, y], [x, y + r], [x - r, y]];
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            r#"<polygon class="{class}" points="{}"><title>{}</title></polygon>"#,
            points.join(" "),
            escape(hover)
        );
    }

    pub(super) fn rect(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2], hover: &str) {
        let title =
            if hover.is_empty() { String::new() } else { format!("<title>{}</title>", escape(hover)) };
        let _ = writeln!(
            self.body,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}">{title}</rect>"#
        );
    }

    /// Text whose anchor is `start`, `middle` or `end`.
    pub(super) fn text(&mut self, class: &str, anchor: &str, [x, y]: [f64; 2], text: &str) {
        let _ = writeln!(
            self.body,
            r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{}</text>"#,
            escape(text)
        );
    }

    /// Text that rises to the right, by so many degrees.
    pub(super) fn rising(&mut self, class: &str, degrees: u32, [x, y]: [f64; 2], text: &str) {
        let _ = writeln!(
            self.body,
            r#"<text class="{class}" transform="translate({x:.1} {y:.1}) rotate(-{degrees})">{}</text>"#,
            escape(text)
        );
    }

    /// As an element of a page that has [`STYLE`].
    pub(in crate::report) fn inline(&self) -> String {
        self.element("", 0.0, "")
    }

    /// As a file by itself.
    pub(in crate::report) fn file(&self) -> String {
        const MARGIN: f64 = 16.0;
        let ground = format!(
            r#"<rect class="ground" x="-{MARGIN}" y="-{MARGIN}" width="{}" height="{}"/>"#,
            self.width + 2.0 * MARGIN,
            self.height + 2.0 * MARGIN
        );
        let style = format!("<style>{STYLE}</style>\n{ground}\n");
        self.element(r#" xmlns="http://www.w3.org/2000/svg""#, MARGIN, &style)
    }

    fn element(&self, namespace: &str, margin: f64, before: &str) -> String {
        let Self { name, body, .. } = self;
        let (title, description) = (escape(&self.title), escape(&self.description));
        let (start, width, height) = (0.0 - margin, self.width + 2.0 * margin, self.height + 2.0 * margin);
        format!(
            "<svg{namespace} class=\"plot\" viewBox=\"{start} {start} {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" role=\"img\" aria-labelledby=\"{name}-title {name}-description\">\n\
             <title id=\"{name}-title\">{title}</title>\n<desc id=\"{name}-description\">{description}</desc>\n\
             {before}{body}</svg>\n"
        )
    }
}

/// About how wide a text is in a sans-serif font of this size; rather too wide than too narrow.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    let letter = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | ' ' | 't' | 'f' | 'r' | '(' | ')'
        | '-' => 0.38,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.93,
        c if c.is_ascii_uppercase() => 0.7,
        c if c.is_ascii() => 0.61,
        _ => 1.0,
    };
    size * text.chars().map(letter).sum::<f64>()
}
