//! The table for people.

use std::fmt::Write;

use crate::row::Row;

/// One line a row, what was learned below it.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = String::new();
    let _infallible = writeln!(
        text,
        "\n{:<24} {:<14} {:<7} {:>11} {:>8}  as the script says",
        "name asked", "rule", "tunnel", "first byte", "MB/s"
    );
    for row in rows {
        render_row(&mut text, row);
    }
    text
}

fn render_row(text: &mut String, row: &Row) {
    let figure = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}{unit}"))
    };
    let _infallible = writeln!(
        text,
        "{:<24} {:<14} {:<7} {:>11} {:>8}  {}",
        row.name,
        row.rule,
        row.tunnel,
        figure(row.ttfb_ms, " ms"),
        figure(row.mb_per_s, ""),
        if row.ok { "yes" } else { "NO" }
    );
    for complaint in &row.wrong {
        let _infallible = writeln!(text, "    wrong: {complaint}");
    }
    for (node, facts) in &row.learned {
        for fact in facts {
            let _infallible = writeln!(text, "    {node:<7} {fact}");
        }
    }
}
