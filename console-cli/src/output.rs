//! Standard output is the contract; standard error carries one line per failure.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Writes `text` and a line end to standard output.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).context("write to standard output")
}

/// Writes a value as JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    line(&serde_json::to_string_pretty(value).context("encode JSON")?)
}

/// Writes one line to standard error. There is nobody to tell when that fails.
pub(crate) fn error(text: &str) {
    let text = text.replace(['\r', '\n'], " ");
    let _ = writeln!(io::stderr().lock(), "tidemark: {text}");
}

/// Writes one line about something that did not stop the command to standard error.
pub(crate) fn warning(text: &str) {
    error(&format!("warning: {text}"));
}

/// Whether the reader of our standard output went away.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        && error.to_string() == "write to standard output"
}

/// Lines with aligned columns, under a heading.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).into()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        // A name may hold anything; a table has one line per row.
        self.rows.push(cells.map(|cell| cell.replace(|c: char| c.is_control(), "?")).into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut lines = Vec::new();
        for row in &self.rows {
            let mut text = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                text.push_str(&format!("{cell:<width$}  "));
            }
            lines.push(text.trim_end().to_owned());
        }
        lines.join("\n")
    }

    pub(crate) fn print(&self) -> Result<()> {
        line(&self.render())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_names_cannot_break_lines() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["a\nb".to_owned(), "new".to_owned()]);
        table.row(["long-name".to_owned(), "x".to_owned()]);
        assert_eq!(table.render(), "NAME       STATE\na?b        new\nlong-name  x");
    }
}
