//! config.toml, of which one section of a plugin is changed and all else kept as it was written.

use std::{
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io::{self, Write as _},
    ops::Range,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use crate::error::CliError;

/// The section that all instances are below.
const PLUGIN: &str = "plugin";

/// A config file, read.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    before: String,
    /// What it shall say: of plugins, and of all else.
    plugins: Table,
    table: Table,
    after: String,
}

/// A config file that was changed.
#[derive(Debug)]
pub(crate) struct Changed {
    path: PathBuf,
    before: String,
    after: String,
}

impl ConfigFile {
    pub(crate) fn read(path: &Path) -> Result<Self, CliError> {
        // What a link leads to is replaced, not the link.
        let path = fs::canonicalize(path).map_err(|error| cannot_read(path, error))?;
        let before = fs::read_to_string(&path).map_err(|error| cannot_read(&path, error))?;
        let (plugins, table) = parse(&path, &before)?;
        Ok(Self {
            path,
            after: before.clone(),
            before,
            plugins,
            table,
        })
    }

    /// Whether there is a section of this instance.
    pub(crate) fn names(&self, instance: &str) -> bool {
        self.plugins.contains_key(instance)
    }

    /// Adds a section at the end.
    pub(crate) fn add(
        &mut self,
        instance: &str,
        wasm: &str,
        sha256: &str,
        grants: &[(&'static str, Value)],
    ) {
        let grants = grants.iter().cloned();
        let grants: Table = grants
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let keys = [
            ("wasm", Value::from(wasm)),
            ("sha256", Value::from(sha256)),
            ("grants", Value::Table(grants)),
        ];
        if !self.after.is_empty() && !self.after.ends_with('\n') {
            self.after.push('\n');
        }
        self.after.push_str(&format!("\n[{PLUGIN}.{instance}]\n"));
        for (key, value) in &keys {
            self.after.push_str(&format!("{key} = {value}\n"));
        }
        let keys = keys.map(|(key, value)| (key.to_owned(), value));
        self.plugins.insert(
            instance.to_owned(),
            Value::Table(keys.into_iter().collect()),
        );
    }

    /// Takes a section out; false: there is none.
    pub(crate) fn remove(&mut self, instance: &str) -> bool {
        if self.plugins.remove(instance).is_none() {
            return false;
        }
        let lines: Vec<&str> = self.after.split_inclusive('\n').collect();
        let section = section(&lines, instance);
        let (before, rest) = lines.split_at(section.start);
        let behind = rest.get(section.len()..).unwrap_or_default();
        self.after = match behind.concat().trim().is_empty() {
            true => before.concat().trim_end().to_owned() + "\n",
            false => [before, behind].concat().concat(),
        };
        true
    }

    /// Pins the component of an instance.
    pub(crate) fn pin(&mut self, instance: &str, sha256: &str) -> Result<(), CliError> {
        let missing = file_error(
            &self.path,
            &format!("it has no section [plugin.{instance}]"),
        );
        let section_keys = self.plugins.get_mut(instance);
        let section_keys = section_keys.and_then(Value::as_table_mut).ok_or(missing)?;
        section_keys.insert("sha256".to_owned(), Value::from(sha256));
        let mut lines: Vec<String> = self
            .after
            .split_inclusive('\n')
            .map(str::to_owned)
            .collect();
        let known: Vec<&str> = lines.iter().map(String::as_str).collect();
        let section = section(&known, instance);
        let is_pin = |line: &String| key(line) == Some("sha256");
        let pinned = lines.iter().take(section.end).skip(section.start);
        let pinned = pinned.into_iter().position(is_pin);
        let value = Value::from(sha256).to_string();
        match pinned.and_then(|at| lines.get_mut(section.start + at)) {
            Some(pinned) => *pinned = with_value(pinned, &value),
            None => {
                let line = format!("sha256 = {value}\n");
                lines.insert((section.start + 1).min(lines.len()), line);
            }
        }
        self.after = lines.concat();
        Ok(())
    }

    /// # Errors
    /// The file cannot be written, or is another one by now; or it is written in a way of which no
    /// line can be changed alone: then it stays as it is.
    pub(crate) fn write(self) -> Result<Changed, CliError> {
        let meant = (self.plugins, self.table);
        if !parse(&self.path, &self.after).is_ok_and(|after| after == meant) {
            let why = "its [plugin] sections are written in a way that only an editor can change";
            return Err(file_error(&self.path, why));
        }
        replace(&self.path, &self.before, &self.after)?;
        Ok(Changed {
            path: self.path,
            before: self.before,
            after: self.after,
        })
    }
}

impl Changed {
    /// Makes it what it was, unless somebody else has changed it since.
    pub(crate) fn undo(self) -> Result<(), CliError> {
        replace(&self.path, &self.after, &self.before)
    }
}

/// The lines of an instance's section, and of those below it. Comments at its end may be of what
/// follows, or of what may be put there, and are not its own. What a line may be part of is seen when the whole is read again.
fn section(lines: &[&str], instance: &str) -> Range<usize> {
    let own = format!("[{PLUGIN}.{instance}]");
    let below = format!("[{PLUGIN}.{instance}.");
    let is_head = |line: &&str| line.trim_start().starts_with('[');
    let is_own =
        |line: &&str| line.trim_start().starts_with(&own) || line.trim_start().starts_with(&below);
    let start = lines.iter().position(is_own).unwrap_or(lines.len());
    let rest = lines.iter().enumerate().skip(start);
    let next = rest
        .into_iter()
        .find(|(_, line)| is_head(line) && !is_own(line));
    let mut end = next.map_or(lines.len(), |(at, _)| at);
    let is_loose = |line: &&&str| line.trim().is_empty() || line.trim_start().starts_with('#');
    while end > start && lines.get(end - 1).as_ref().is_some_and(is_loose) {
        end -= 1;
    }
    start..end
}

/// The key that a line sets.
fn key(line: &str) -> Option<&str> {
    line.split_once('=').map(|(key, _)| key.trim())
}

/// The line with another text as its value; what stands behind that stays.
fn with_value(line: &str, value: &str) -> String {
    let (key, rest) = line.split_once('=').unwrap_or((line, ""));
    let before = rest.trim_start();
    let space = rest.strip_suffix(before).unwrap_or_default();
    let behind = ['"', '\'']
        .into_iter()
        .find_map(|quote| before.strip_prefix(quote)?.split_once(quote));
    let behind = behind.map_or("\n", |(_, behind)| behind);
    format!("{key}={space}{value}{behind}")
}

/// What it says of plugins, and of all else.
fn parse(path: &Path, text: &str) -> Result<(Table, Table), CliError> {
    let parsed = text.parse::<Table>();
    let mut table = parsed.map_err(|error| file_error(path, &error.to_string()))?;
    let plugins = match table.remove(PLUGIN) {
        None => Table::new(),
        Some(Value::Table(plugins)) => plugins,
        Some(_) => return Err(file_error(path, "`plugin` is no table")),
    };
    Ok((plugins, table))
}

/// Puts a text in the place of the one that the file is known to hold. With the same owner and mode;
/// whenever the machine stops, the file is as it was or as it shall be.
fn replace(path: &Path, known: &str, text: &str) -> Result<(), CliError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let unchanged = |error: io::Error| file_error(path, &format!("cannot change it: {error}"));
    let about = fs::metadata(path).map_err(unchanged)?;
    let taken = || format!("{} is there: somebody else changes it", beside.display());
    let file = lock(&beside, &about).map_err(unchanged)?;
    let mut file = file.ok_or_else(|| file_error(path, &taken()))?;
    let mut write = || -> io::Result<()> {
        if fs::read_to_string(path)? != known {
            let since = "somebody else changed it meanwhile; look at its [plugin] sections";
            return Err(io::Error::other(since));
        }
        file.set_len(0)?;
        file.set_permissions(about.permissions())?;
        let mine = file.metadata()?;
        if (mine.uid(), mine.gid()) != (about.uid(), about.gid()) {
            std::os::unix::fs::fchown(&file, Some(about.uid()), Some(about.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&beside);
        unchanged(error)
    })
}

/// The file that becomes the new one; none: somebody else has it, who changes the same. One that was
/// left by who was interrupted is taken over.
fn lock(beside: &Path, about: &Metadata) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false);
    let file = options.mode(about.mode() & 0o777).open(beside)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
        Ok(()) => {}
    }
    // By then it may be the file that it was to become; and what a link leads to is not changed.
    let opened = file.metadata()?;
    let named = fs::symlink_metadata(beside);
    let is_same = |named: &Metadata| (named.dev(), named.ino()) == (opened.dev(), opened.ino());
    Ok(named.is_ok_and(|named| is_same(&named)).then_some(file))
}

fn cannot_read(path: &Path, source: io::Error) -> CliError {
    CliError::ReadFile {
        path: path.to_owned(),
        source,
    }
}

fn file_error(path: &Path, message: &str) -> CliError {
    CliError::File {
        path: path.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# of the node\n[node]\nname = 'ann' # me\n\n[plugin.one]\n# mine\nwasm = \
                        '1.wasm'\n[plugin.one.config]\na = 1\n\n# the other one\n[plugin.two]\n\
                        wasm = '2.wasm'\nsha256 = '00'\n\n[log]\nlevel = 'info'\n";

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn changed(text: &str, change: impl FnOnce(&mut ConfigFile)) -> Result<String, CliError> {
        let (_dir, path) = file(text);
        let mut file = ConfigFile::read(&path)?;
        change(&mut file);
        file.write()?;
        Ok(fs::read_to_string(&path)?)
    }

    #[test]
    fn one_section_changes_and_all_else_stays_as_it_was_written() {
        let grants = [
            ("state", Value::from(true)),
            ("facts", Value::from(vec!["credit"])),
        ];
        let added = changed(TEXT, |file| file.add("three", "/3.wasm", "aa", &grants));
        let section = "\n[plugin.three]\nwasm = \"/3.wasm\"\nsha256 = \"aa\"\n\
                       grants = { facts = [\"credit\"], state = true }\n";
        assert_eq!(added.unwrap(), format!("{TEXT}{section}"));

        let removed = changed(TEXT, |file| assert!(file.remove("one"))).unwrap();
        let (before, rest) = TEXT.split_once("[plugin.one]").unwrap();
        let (_, behind) = rest.split_once("a = 1\n").unwrap();
        assert_eq!(removed, format!("{before}{behind}"));
        let same = changed(TEXT, |file| assert!(!file.remove("three")));
        assert_eq!(same.unwrap(), TEXT);

        let pinned = changed(TEXT, |file| file.pin("two", "ff").unwrap()).unwrap();
        assert_eq!(pinned, TEXT.replace("sha256 = '00'", "sha256 = \"ff\""));
        let pinned = changed(TEXT, |file| file.pin("one", "ff").unwrap()).unwrap();
        let head = "[plugin.one]\n";
        assert_eq!(
            pinned,
            TEXT.replace(head, &format!("{head}sha256 = \"ff\"\n"))
        );
    }

    #[test]
    fn comments_stay_where_they_were_written() {
        let two = "[node]\nname = 'ann'\n\n[plugin.two]\n# mine\nwasm = '2.wasm'\n";
        let notes = "# why\n\n# [plugin.three]\n# wasm = '3.wasm'\n";
        let removed = changed(&format!("{two}{notes}"), |file| assert!(file.remove("two")));
        let before = "[node]\nname = 'ann'\n\n";
        assert_eq!(removed.unwrap(), format!("{before}{notes}"));
        let last = changed(&format!("{two}\n"), |file| assert!(file.remove("two")));
        assert_eq!(last.unwrap(), "[node]\nname = 'ann'\n");

        for (line, pinned) in [
            ("  sha256='00' # of 'ann'\n", "  sha256=\"ff\" # of 'ann'\n"),
            ("sha256 =\t\"00\"# \"b\"\n", "sha256 =\t\"ff\"# \"b\"\n"),
            ("sha256 = '00'", "sha256 = \"ff\""),
        ] {
            let text = format!("{two}{line}");
            let changed = changed(&text, |file| file.pin("two", "ff").unwrap());
            assert_eq!(changed.unwrap(), format!("{two}{pinned}"));
        }
    }

    #[test]
    fn what_cannot_be_changed_alone_stays() {
        let inline = "plugin = { one = { wasm = '1.wasm' } }\n";
        let error = changed(inline, |file| assert!(file.remove("one"))).unwrap_err();
        assert!(error.to_string().contains("only an editor"), "{error}");
        let hidden = "[node]\nname = \"\"\"\n[plugin.one]\n\"\"\"\n[plugin.one]\nwasm = '1'\n";
        assert!(changed(hidden, |file| assert!(file.remove("one"))).is_err());
    }

    #[test]
    fn what_somebody_else_changed_since_or_changes_is_left_to_him() {
        let (_dir, path) = file(TEXT);
        let change = || {
            let mut file = ConfigFile::read(&path).unwrap();
            file.pin("two", "ff").unwrap();
            file
        };
        let (one, other) = (change(), change());
        let by_one = one.write().unwrap().after;
        let error = other.write().unwrap_err();
        assert!(error.to_string().contains("somebody else changed"));
        assert_eq!(fs::read_to_string(&path).unwrap(), by_one);

        let beside = path.with_file_name("config.toml.new");
        let lock = File::create(&beside).unwrap();
        lock.lock().unwrap();
        let error = change().write().unwrap_err();
        assert!(error.to_string().contains("somebody else changes it"));
        assert!(beside.exists());
        // Who was interrupted has no lock.
        drop(lock);
        fs::write(&beside, "some of it").unwrap();
        let changed = change().write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), changed.after);
        assert!(!beside.exists());

        let elsewhere = path.with_file_name("elsewhere");
        fs::write(&elsewhere, "another's").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &beside).unwrap();
        assert!(change().write().is_err());
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "another's");
    }

    #[test]
    fn a_change_is_undone_unless_somebody_else_has_changed_the_file() {
        let (_dir, path) = file(TEXT);
        let change = || {
            let mut file = ConfigFile::read(&path).unwrap();
            file.add("three", "3", "aa", &[]);
            file.write().unwrap()
        };
        change().undo().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
        let changed = change();
        fs::write(&path, "").unwrap();
        assert!(changed.undo().is_err());
    }
}
