//! Columns under heads, aligned, cut to the terminal's width where a column allows it.

use crate::{
    format::{clean, cut},
    output::{Style, Tone},
};

/// Between columns.
const GAP: &str = "  ";
/// A cut column keeps at least so many characters.
const MIN_CUT_WIDTH: usize = 8;

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
struct Column {
    head: &'static str,
    right: bool,
    cut: bool,
}

/// One value with its meaning.
#[derive(Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Table {
    /// Heads by column; a leading `>` aligns to the right, a leading `~` lets the column be cut.
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        let columns = heads
            .iter()
            .map(|head| Column {
                head: head.trim_start_matches(['>', '~']),
                right: head.starts_with('>'),
                cut: head.starts_with('~'),
            })
            .collect();
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row of as many cells as there are heads.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as lines.
    pub(crate) fn render(&self, style: Style) -> String {
        let widths = self.widths(style.width);
        let heads: Vec<Cell> = self.columns.iter().map(|c| head(c.head)).collect();
        std::iter::once(&heads)
            .chain(&self.rows)
            .map(|row| self.line(row, &widths, style))
            .collect()
    }

    fn line(&self, row: &[Cell], widths: &[usize], style: Style) -> String {
        let mut line = String::new();
        for ((cell, column), width) in row.iter().zip(&self.columns).zip(widths) {
            let text = cut(&cell.text, *width);
            let space = " ".repeat(width.saturating_sub(text.chars().count()));
            let text = style.paint(cell.tone, &text);
            let (before, after) = if column.right {
                (space, String::new())
            } else {
                (String::new(), space)
            };
            line.push_str(&format!("{before}{text}{after}{GAP}"));
        }
        let mut line = line.trim_end().to_owned();
        line.push('\n');
        line
    }

    fn widths(&self, terminal: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(index));
                let widest = cells.map(|cell| cell.text.chars().count()).max();
                widest.unwrap_or_default().max(column.head.chars().count())
            })
            .collect();
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        let mut excess = terminal.map_or(0, |terminal| {
            (widths.iter().sum::<usize>() + gaps).saturating_sub(terminal)
        });
        // The widest gives first, so that no column is cut to nothing for the sake of another.
        while excess > 0 {
            let columns = widths.iter_mut().zip(&self.columns);
            let wide = columns.filter(|(width, column)| column.cut && **width > MIN_CUT_WIDTH);
            let Some((widest, _)) = wide.max_by_key(|(width, _)| **width) else {
                break;
            };
            *widest -= 1;
            excess -= 1;
        }
        widths
    }
}

impl Cell {
    /// A value in a colour.
    pub(crate) fn toned(tone: Tone, text: &str) -> Self {
        Self {
            text: clean(text),
            tone,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::toned(Tone::Plain, text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::toned(Tone::Plain, &text)
    }
}

fn head(text: &str) -> Cell {
    Cell::toned(Tone::Head, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "~TARGET", ">BYTES"]);
        table.row(["a".into(), "a-long-name.example:443".into(), "1".into()]);
        table.row(["bob".into(), "b:1".into(), "1000".into()]);
        table
    }

    #[test]
    fn columns_are_aligned() {
        let text = "NAME  TARGET                   BYTES\n\
                    a     a-long-name.example:443      1\n\
                    bob   b:1                       1000\n";
        assert_eq!(table().render(Style::default()), text);
    }

    #[test]
    fn a_terminal_cuts_what_may_be_cut() {
        let style = Style {
            color: false,
            width: Some(25),
        };
        let text = "NAME  TARGET        BYTES\n\
                    a     a-long-name…      1\n\
                    bob   b:1            1000\n";
        assert_eq!(table().render(style), text);
    }

    #[test]
    fn the_widest_column_gives_first() {
        let style = Style {
            color: false,
            width: Some(40),
        };
        let mut table = Table::new(&["~TARGET", "~PATH", "AGE"]);
        table.row([
            "a-very-long-name.example:443".into(),
            "ada > bob > carol".into(),
            "1s".into(),
        ]);
        let text = "TARGET             PATH              AGE\n\
                    a-very-long-name…  ada > bob > car…  1s\n";
        assert_eq!(table.render(style), text);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let style = Style {
            color: true,
            width: None,
        };
        let mut table = Table::new(&["A", "B"]);
        table.row([Cell::toned(Tone::Good, "yes"), "x".into()]);
        let text = table.render(style);
        assert!(text.contains("\u{1b}[32myes\u{1b}[0m  x"), "{text:?}");
    }
}
