//! The table that a run prints: each row when it is known, since a run takes minutes.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::row::Row;

const HEADING: &str = "| row | value | against | ratio | floor |\n|---|---|---|---|---|";

/// The rows whose names hold a text.
pub(crate) struct Table<'a> {
    only: &'a str,
    rows: Vec<Row>,
    failed: Vec<Value>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(only: &'a str) -> Self {
        eprintln!("{HEADING}");
        Self {
            only,
            rows: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Shows those whose names hold the text.
    pub(crate) fn add(&mut self, rows: impl IntoIterator<Item = Row>) {
        for row in rows {
            if row.name().contains(self.only) {
                self.show(row);
            }
        }
    }

    /// Shows what is read beside others, whatever is wanted.
    pub(crate) fn show(&mut self, row: Row) {
        eprintln!("{}", row.line());
        self.rows.push(row);
    }

    /// Rows that could not be measured.
    pub(crate) fn fail(&mut self, rows: &[String], error: &anyhow::Error) {
        eprintln!("error: {error:#}");
        let error = format!("{error:#}");
        self.failed.push(json!({ "rows": rows, "error": error }));
    }

    /// Whether all are there and none misses its floor; with `json`, one object says it all.
    pub(crate) fn end(self, json: bool) -> ExitCode {
        if json {
            println!("{}", json!({ "rows": self.rows, "failed": self.failed }));
        }
        match self.failed.is_empty() && self.rows.iter().all(Row::ok) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}
