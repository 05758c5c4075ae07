//! The SDK as packages bring it: the sources of its crates, under manifests that need no workspace around
//! them, so that plain cargo builds a plugin on them anywhere.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use super::write;
use crate::stage::workspace;

/// What is packed as it is. The template is within `wormholes`.
const PARTS: [&str; 4] = ["README.md", "kit/src", "rust/src", "wit"];
const CRATES: [&str; 2] = ["kit", "rust"];
/// Where a manifest names what its crate stands on.
const DEPENDENCIES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
/// The folder of the SDK in the workspace, where all paths of its crates' dependencies lead.
const FOLDER: &str = "sdk/";

/// Packs it into a new folder.
pub(super) fn pack(to: &Path) -> Result<()> {
    let from = workspace().join(FOLDER);
    for part in PARTS {
        let (from, to) = (from.join(part), to.join(part));
        copy(&from, &to).with_context(|| format!("cannot pack {}", from.display()))?;
    }
    let root: Table = read(&workspace())?;
    let root = root.get("workspace").and_then(Value::as_table);
    let root = root.context("there is no workspace")?;
    for folder in CRATES {
        let manifest = plain(read(&from.join(folder))?, root);
        let manifest = manifest.with_context(|| format!("the manifest of {FOLDER}{folder}"))?;
        let text = toml::to_string(&manifest).context("cannot write a manifest")?;
        write(&to.join(folder).join("Cargo.toml"), &text)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
    fs::copy(from, to)?;
    Ok(())
}

fn read(folder: &Path) -> Result<Table> {
    let path = folder.join("Cargo.toml");
    let text = fs::read_to_string(&path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    let manifest = text.parse::<Table>();
    manifest.with_context(|| format!("cannot read {}", path.display()))
}

/// A crate's manifest with what it has of the workspace written out.
fn plain(mut manifest: Table, workspace: &Table) -> Result<Table> {
    let shared = |name: &str| {
        let shared = workspace.get(name).and_then(Value::as_table);
        shared.with_context(|| format!("the workspace has no {name}"))
    };
    let package = table(&mut manifest, "package").context("there is no package")?;
    for (key, value) in package.iter_mut().filter(|(_, value)| inherits(value)) {
        let known = shared("package")?.get(key);
        *value = known
            .with_context(|| format!("the workspace has no {key}"))?
            .clone();
    }
    if let Some(lints) = manifest.get_mut("lints").filter(|lints| inherits(lints)) {
        *lints = Value::Table(shared("lints")?.clone());
    }
    let known = shared("dependencies")?;
    write_out(&mut manifest, known)?;
    if let Some(targets) = table(&mut manifest, "target") {
        for (_, target) in targets.iter_mut() {
            let target = target.as_table_mut().context("a target is a table")?;
            write_out(target, known)?;
        }
    }
    Ok(manifest)
}

/// Writes out the dependencies of a manifest, or of one of its targets.
fn write_out(part: &mut Table, known: &Table) -> Result<()> {
    for section in DEPENDENCIES {
        let Some(dependencies) = table(part, section) else {
            continue;
        };
        for (name, value) in dependencies.iter_mut().filter(|(_, value)| inherits(value)) {
            if value.as_table().is_some_and(|own| own.len() > 1) {
                bail!("{name}: what stands beside `workspace = true` belongs into the workspace");
            }
            let known = known.get(name);
            *value = known
                .with_context(|| format!("the workspace has no {name}"))?
                .clone();
            if let Some(path) = value.get_mut("path") {
                let within = path.as_str().and_then(|path| path.strip_prefix(FOLDER));
                let within = within.with_context(|| format!("{name} is not of the SDK"))?;
                *path = Value::String(format!("../{within}"));
            }
        }
    }
    Ok(())
}

fn table<'a>(of: &'a mut Table, name: &str) -> Option<&'a mut Table> {
    of.get_mut(name).and_then(Value::as_table_mut)
}

fn inherits(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKSPACE: &str = "
        [package]
        version = '1.2.3'
        [dependencies]
        serde = { version = '1', features = ['derive'] }
        toml = '0.9'
        own = { path = 'sdk/rust' }
        other = { path = 'router/proto' }
        [lints.rust]
        missing_docs = 'warn'
    ";

    fn written(manifest: &str) -> Result<Table> {
        plain(manifest.parse().unwrap(), &WORKSPACE.parse().unwrap())
    }

    #[test]
    fn what_a_manifest_has_of_the_workspace_is_written_out() {
        let manifest = "
            [package]
            name = 'kit'
            version.workspace = true
            [lints]
            workspace = true
            [dependencies]
            serde.workspace = true
            own.workspace = true
            [target.'cfg(unix)'.dependencies]
            toml.workspace = true
        ";
        let expected = "
            [package]
            name = 'kit'
            version = '1.2.3'
            [lints.rust]
            missing_docs = 'warn'
            [dependencies]
            serde = { version = '1', features = ['derive'] }
            own = { path = '../rust' }
            [target.'cfg(unix)'.dependencies]
            toml = '0.9'
        ";
        let written = written(manifest).unwrap();
        assert_eq!(written, expected.parse::<Table>().unwrap());
        let text = toml::to_string(&written).unwrap();
        assert_eq!(text.parse::<Table>().unwrap(), written, "{text}");
    }

    #[test]
    fn what_is_not_there_or_would_be_lost_is_refused() {
        for wrong in [
            "none.workspace = true",
            "other.workspace = true",
            "serde = { workspace = true, features = ['rc'] }",
        ] {
            let manifest = format!("[package]\nname = 'kit'\n[dependencies]\n{wrong}");
            assert!(written(&manifest).is_err(), "{wrong}");
        }
    }
}
