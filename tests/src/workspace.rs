//! The workspace as text: its root, its files, their lines.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A text file of the workspace.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Relative to the root, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// The folder of the workspace's Cargo.toml.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Reads every file whose name ends with one of `extensions`, in order of path; what cargo builds
/// and what begins with a dot is left out.
///
/// # Errors
/// When a folder or a file cannot be read as UTF-8.
pub fn files(extensions: &[&str]) -> io::Result<Vec<SourceFile>> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let built = name == "target" && path.join("CACHEDIR.TAG").exists();
            if name.starts_with('.') || built {
                continue;
            }
            let wanted = || {
                path.extension()
                    .is_some_and(|extension| extensions.iter().any(|one| extension == *one))
            };
            if path.is_dir() {
                folders.push(path);
            } else if wanted() {
                let relative = path.strip_prefix(&root).unwrap_or(&path);
                found.push(SourceFile {
                    path: relative.to_string_lossy().into_owned(),
                    text: fs::read_to_string(&path)?,
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

impl SourceFile {
    /// Its lines with their numbers, the first being 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(at, line)| (at + 1, line))
    }

    /// Its lines without comments.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines()
            .map(|(number, line)| (number, line.split("//").next().unwrap_or(line)))
    }

    /// Its lines that only tests compile: all below `tests/`, else those from `#[cfg(test)]` on.
    pub fn test_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut in_tests = self.path.starts_with("tests/");
        self.code().filter(move |(_, line)| {
            in_tests |= line.trim() == "#[cfg(test)]";
            in_tests
        })
    }
}
