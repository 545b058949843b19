use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, TableStyle};

use super::number::group_digits;

/// A line under the headings and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// What stands in a row and column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// Text, or a number that is already rounded for reading.
    Text(String),
    /// A count: digits in groups for readers, plain for programs.
    Count(u64),
}

impl Cell {
    pub(super) fn for_readers(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(number) => group_digits(*number),
        }
    }

    fn for_programs(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(number) => number.to_string(),
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Count(number)
    }
}

/// Rows under headings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    headings: Vec<(String, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new<'a>(headings: impl IntoIterator<Item = (&'a str, Align)>) -> Self {
        Self { headings: headings.into_iter().map(|(h, a)| (h.to_owned(), a)).collect(), rows: Vec::new() }
    }

    /// Appends a row; missing cells are empty, surplus ones are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let mut cells: Vec<Cell> = cells.into_iter().take(self.headings.len()).collect();
        cells.resize(self.headings.len(), Cell::Text(String::new()));
        self.rows.push(cells);
    }

    pub(super) fn headings(&self) -> &[(String, Align)] {
        &self.headings
    }

    pub(super) fn rows(&self) -> &[Vec<Cell>] {
        &self.rows
    }

    /// As a Markdown table.
    pub fn to_markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let escape = |text: &String| text.replace('\\', "\\\\").replace('|', "\\|").replace('\n', " ");
        let mut text = line(self.headings.iter().map(|(h, _)| escape(h)).collect());
        let rule = |align: &Align| if *align == Align::Right { "---:" } else { "---" }.to_owned();
        text.push_str(&line(self.headings.iter().map(|(_, a)| rule(a)).collect()));
        for row in &self.rows {
            text.push_str(&line(row.iter().map(|cell| escape(&cell.for_readers())).collect()));
        }
        text
    }

    /// As comma-separated values (RFC 4180).
    pub fn to_csv(&self) -> String {
        let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
        let headings = self.headings.iter().map(|(h, _)| h.as_str());
        // writing to memory does not fail, and every row has as many cells as there are headings
        let written = writer.write_record(headings).and_then(|()| {
            self.rows.iter().try_for_each(|row| writer.write_record(row.iter().map(Cell::for_programs)))
        });
        let bytes = writer.into_inner().unwrap_or_default();
        debug_assert!(written.is_ok());
        String::from_utf8(bytes).unwrap_or_default()
    }
}

/// As a terminal shows it.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_style(STYLE).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.headings.iter().map(|(h, _)| h));
        table.add_rows(self.rows.iter().map(|row| row.iter().map(Cell::for_readers)));
        for (column, (_, align)) in table.column_iter_mut().zip(&self.headings) {
            column.set_cell_alignment(match align {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_and_csv_escape_what_would_break_them() {
        let mut table = Table::new([("name", Align::Left), ("bytes", Align::Right)]);
        table.row(["a|b, \"c\"".into(), 1234.into(), "surplus".into()]);
        table.row(["d".into()]);
        assert_eq!(
            table.to_markdown(),
            "| name | bytes |\n| --- | ---: |\n| a\\|b, \"c\" | 1,234 |\n| d |  |\n"
        );
        assert_eq!(table.to_csv(), "name,bytes\r\n\"a|b, \"\"c\"\"\",1234\r\nd,\r\n");
    }
}
