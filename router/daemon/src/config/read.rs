//! Typed access to parsed TOML that collects every problem with its line, so that one run shows
//! all mistakes of a file.

use std::{
    cell::RefCell, collections::BTreeMap, fmt::Display, ops::RangeInclusive, time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    hint::suggestion,
    keys::{ABSENT_KEYS, SECTIONS, Section},
    load::Problem,
};

/// A document with the problems found so far.
#[derive(Debug)]
pub(super) struct Document<'a> {
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
}

/// One `[section]`, or one of `[[section]]`; an absent one has no keys.
#[derive(Debug)]
pub(super) struct Table<'a> {
    document: &'a Document<'a>,
    name: &'static str,
    table: Option<&'a DeTable<'a>>,
    offset: usize,
}

impl<'a> Document<'a> {
    /// Starts without problems.
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            problems: RefCell::default(),
        }
    }

    /// The line of a byte, from 1.
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Notes a problem at a byte.
    pub(super) fn problem(&self, offset: usize, message: impl Into<String>) {
        let line = self.line(offset);
        let message = message.into();
        self.problems.borrow_mut().push(Problem { line, message });
    }

    /// All problems in order of line.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    /// Refuses sections that there are not.
    pub(super) fn check_sections(&self, root: &DeTable<'_>) {
        for key in root.keys() {
            let name = key.get_ref().as_ref();
            if SECTIONS.iter().any(|section| section.name == name) {
                continue;
            }
            let known = SECTIONS.iter().map(|section| section.name);
            let hint = home_of(name).unwrap_or_else(|| suggestion(name, known));
            let message = format!("unknown section or key `{name}`{hint}");
            self.problem(key.span().start, message);
        }
    }

    /// The section `name`.
    pub(super) fn section(&'a self, root: &'a DeTable<'a>, name: &'static str) -> Table<'a> {
        let value = root.get(name);
        let table = value.and_then(|value| {
            let table = value.get_ref().as_table();
            if table.is_none() {
                let message = format!("expected a section [{name}]");
                self.problem(value.span().start, message);
            }
            table
        });
        let offset = value.map_or(0, |value| value.span().start);
        self.table(name, table, offset)
    }

    /// All of `[[name]]`.
    pub(super) fn sections(&'a self, root: &'a DeTable<'a>, name: &'static str) -> Vec<Table<'a>> {
        let Some(value) = root.get(name) else {
            return Vec::new();
        };
        let items = value.get_ref().as_array();
        let items = items.map(|items| items.iter());
        let tables = items.into_iter().flatten().filter_map(|item| {
            let table = item.get_ref().as_table()?;
            Some(self.table(name, Some(table), item.span().start))
        });
        let tables: Vec<_> = tables.collect();
        if tables.is_empty() {
            self.problem(value.span().start, format!("expected [[{name}]]"));
        }
        tables
    }

    /// All of `[name.…]`, by what stands behind the dot.
    pub(super) fn named_sections(
        &'a self,
        root: &'a DeTable<'a>,
        name: &'static str,
    ) -> Vec<(&'a str, Table<'a>)> {
        let Some(value) = root.get(name) else {
            return Vec::new();
        };
        let Some(tables) = value.get_ref().as_table() else {
            self.problem(value.span().start, format!("expected [{name}.NAME]"));
            return Vec::new();
        };
        let tables = tables.iter().filter_map(|(key, value)| {
            let table = value.get_ref().as_table();
            if table.is_none() {
                self.problem(value.span().start, format!("expected [{name}.NAME]"));
            }
            let section = self.table(name, Some(table?), value.span().start);
            Some((key.get_ref().as_ref(), section))
        });
        tables.collect()
    }

    /// The section `name`, `above.key`, if it is there.
    pub(super) fn section_below(
        &'a self,
        above: &Table<'a>,
        name: &'static str,
    ) -> Option<Table<'a>> {
        let (_, key) = name.rsplit_once('.')?;
        let value = above.table?.get(key)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.problem(value.span().start, format!("expected a section [{name}]"));
        }
        Some(self.table(name, table, value.span().start))
    }

    fn table(
        &'a self,
        name: &'static str,
        table: Option<&'a DeTable<'a>>,
        offset: usize,
    ) -> Table<'a> {
        let section = SECTIONS.iter().find(|section| section.name == name);
        let known = section.into_iter().flat_map(Section::keys);
        let known = known.map(|(name, _)| name);
        for key in table.into_iter().flat_map(DeTable::keys) {
            let found = key.get_ref().as_ref();
            let is_section = |below: &Section| {
                let rest = below.name.strip_prefix(name);
                rest.and_then(|rest| rest.strip_prefix('.')) == Some(found)
            };
            if known.clone().any(|name| name == found) || SECTIONS.iter().any(is_section) {
                continue;
            }
            let message = if ABSENT_KEYS.contains(&(name, found)) {
                format!("this build has no `{found}` in [{name}] yet")
            } else {
                let hint = suggestion(found, known.clone());
                format!("unknown key `{found}` in [{name}]{hint}")
            };
            self.problem(key.span().start, message);
        }
        Table {
            document: self,
            name,
            table,
            offset,
        }
    }
}

impl<'a> Table<'a> {
    /// Notes a problem with `key`, or with the section when it has no such key.
    pub(super) fn problem(&self, key: &str, message: impl Display) {
        let value = self.table.and_then(|table| table.get(key));
        let offset = value.map_or(self.offset, |value| value.span().start);
        let name = self.name;
        self.document
            .problem(offset, format!("`{key}` in [{name}]: {message}"));
    }

    /// What `read` makes of the value; its error becomes a problem.
    pub(super) fn value<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&'a DeValue<'a>) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.table?.get(key)?;
        match read(value.get_ref()) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problem(key, message);
                None
            }
        }
    }

    /// A text that `parse` takes.
    pub(super) fn parsed<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.value(key, |value| parsed(value, &parse))
    }

    /// Like [`Table::parsed`], for a key that must be there.
    pub(super) fn required<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.has(key) {
            self.problem(key, "missing");
        }
        self.parsed(key, parse)
    }

    /// A text, when there is one; its absence is no problem here.
    pub(super) fn quiet_text(&self, key: &str) -> Option<String> {
        let value = self.table?.get(key)?;
        value.get_ref().as_str().map(str::to_owned)
    }

    /// Whether the file sets `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// A list of texts that `parse` takes.
    pub(super) fn list<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        self.value(key, |value| {
            let items = value.as_array().ok_or("expected a list")?;
            let items = items.iter().map(|item| parsed(item.get_ref(), &parse));
            items.collect()
        })
    }

    /// A list of integers within `range`.
    pub(super) fn integers(
        &self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<Vec<u64>> {
        self.value(key, |value| {
            let items = value.as_array().ok_or("expected a list")?;
            items
                .iter()
                .map(|item| integer(item.get_ref(), &range))
                .collect()
        })
    }

    /// A table of texts.
    pub(super) fn map<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl Fn(&str, &str) -> Result<T, E>,
    ) -> Option<Vec<(String, T)>> {
        self.value(key, |value| {
            let table = value.as_table().ok_or("expected { name = \"text\", … }")?;
            let items = table.iter().map(|(name, value)| {
                let name: &str = name.get_ref();
                let value = parsed(value.get_ref(), &|text: &str| parse(name, text));
                value.map(|value| (name.to_owned(), value))
            });
            items.collect()
        })
    }

    /// The line of each item of a list.
    pub(super) fn lines_of_list(&self, key: &'static str) -> Vec<usize> {
        let list = self
            .table
            .and_then(|table| table.get(key)?.get_ref().as_array());
        let items = list.into_iter().flat_map(|list| list.iter());
        items
            .map(|item| self.document.line(item.span().start))
            .collect()
    }

    /// The line of each entry of a table, by its name.
    pub(super) fn lines_of_map(&self, key: &'static str) -> BTreeMap<String, usize> {
        let map = self
            .table
            .and_then(|table| table.get(key)?.get_ref().as_table());
        let entries = map.into_iter().flat_map(|map| map.iter());
        entries
            .map(|(name, value)| {
                let line = self.document.line(value.span().start);
                (name.get_ref().to_string(), line)
            })
            .collect()
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        self.value(key, |value| {
            value
                .as_bool()
                .ok_or_else(|| expected("true or false", value))
        })
    }

    /// An integer within `range`.
    pub(super) fn integer(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        self.value(key, |value| integer(value, &range))
    }

    /// A count within `range`.
    pub(super) fn count(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<usize> {
        let count = self.integer(key, range)?;
        usize::try_from(count).ok()
    }

    /// Whole seconds within `range`.
    pub(super) fn seconds(
        &self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<Duration> {
        self.integer(key, range).map(Duration::from_secs)
    }
}

fn parsed<T, E: Display>(
    value: &DeValue<'_>,
    parse: &impl Fn(&str) -> Result<T, E>,
) -> Result<T, String> {
    let text = value.as_str().ok_or_else(|| expected("a text", value))?;
    parse(text).map_err(|error| error.to_string())
}

fn integer(value: &DeValue<'_>, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let integer = value
        .as_integer()
        .ok_or_else(|| expected("an integer", value))?;
    u64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .filter(|integer| range.contains(integer))
        .ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            format!("{integer} is outside {low} to {high}")
        })
}

fn expected(what: &str, found: &DeValue<'_>) -> String {
    format!("expected {what}, found {}", found.type_str())
}

/// Parses the text; a syntax error is the only problem then.
pub(super) fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, Problem> {
    DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let message = error.message();
        Problem {
            line: Document::new(text).line(offset),
            message: match key_before(text, offset) {
                Some(key) => format!("`{key}`: {message}"),
                None => message.to_owned(),
            },
        }
    })
}

/// Where a key stands that was written above all sections, when only one has it.
fn home_of(key: &str) -> Option<String> {
    let mut homes = SECTIONS
        .iter()
        .filter(|section| section.keys().any(|(name, _)| name == key));
    let home = homes.next()?.name;
    let message = format!("; it belongs under [{home}]");
    homes.next().is_none().then_some(message)
}

/// The key of the line that a byte stands on. Of the value nothing is shown: it may be a password.
fn key_before(text: &str, offset: usize) -> Option<&str> {
    let start = text.get(..offset)?.rfind('\n').map_or(0, |end| end + 1);
    let line = text.get(start..)?.lines().next()?;
    let key = line.split_once('=')?.0.trim();
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    (!key.is_empty() && key.chars().all(is_bare)).then_some(key)
}
