//! `wormholes plugin new`: a folder with a plugin to begin with. Needs no daemon and no network.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::json;
use wormholes_proto::control::{RESERVED_INSTANCES, is_instance_name};

use crate::{
    error::CliError,
    format,
    output::{Output, Style},
};

/// What is written; `{{name}}`, `{{sdk}}` and `{{kit}}` stand for the plugin's name, and for where the
/// SDK and its test kit are.
const FILES: [(&str, &str); 6] = [
    (
        "Cargo.toml",
        include_str!("../../../../sdk/template/Cargo.toml.in"),
    ),
    (
        "src/lib.rs",
        include_str!("../../../../sdk/template/lib.rs"),
    ),
    (
        "plugin.toml",
        include_str!("../../../../sdk/template/plugin.toml"),
    ),
    (
        "config.toml",
        include_str!("../../../../sdk/template/config.toml"),
    ),
    (
        "README.md",
        include_str!("../../../../sdk/template/README.md"),
    ),
    (
        ".gitignore",
        include_str!("../../../../sdk/template/gitignore"),
    ),
];

/// Where packages and archives have the SDK, from the folder of this program.
const BESIDE: [&str; 2] = ["../share/wormholes/sdk", "share/wormholes/sdk"];
/// Where the Debian package has it, wherever this program is.
const USUAL: &str = "/usr/share/wormholes/sdk";

/// The component lies beside the manifest, by a link to where cargo builds it.
const COMPONENT: &str = "plugin.wasm";

pub(super) fn run(output: &mut Output, folder: &Path, sdk: Option<&Path>) -> Result<(), CliError> {
    let name = name(folder)?;
    let sdk = match sdk {
        Some(sdk) => given_sdk(sdk)?,
        None => sdk_around().or_else(sdk_installed).ok_or_else(no_sdk)?,
    };
    let plugin = dependency(&sdk, "rust")?;
    let kit = dependency(&sdk, "kit")?;
    make_empty(folder)?;
    for (file, text) in FILES {
        let text = text
            .replace("{{name}}", name)
            .replace("{{sdk}}", &plugin)
            .replace("{{kit}}", &kit);
        write(&folder.join(file), &text)?;
    }
    let crate_name = format!("plugin_{}", name.replace('-', "_"));
    let built = format!("target/wasm32-wasip2/debug/{crate_name}.wasm");
    let link = folder.join(COMPONENT);
    symlink(built, &link).map_err(|error| file_error(&link, &error))?;
    let told = json!({ "plugin": name, "folder": folder, "sdk": sdk });
    output.report(&told, |_: Style| {
        format!(
            "{}: a new plugin; its README.md says how it is built and tried\n",
            format::clean(&folder.display().to_string())
        )
    })
}

/// The last part of the path is the name of all: of the plugin, its instance and its crate.
fn name(folder: &Path) -> Result<&str, CliError> {
    let name = folder.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let rule = if !is_instance_name(name) {
        "a small letter, then small letters, digits and `-`; at most 32"
    } else if RESERVED_INSTANCES.contains(&name) {
        "not a command of `wormholes`"
    } else {
        return Ok(name);
    };
    Err(CliError::Usage {
        message: format!("`{}` cannot name a plugin", format::clean(name)),
        mend: format!("the folder bears the plugin's name: {rule}"),
    })
}

/// Of the checkout that this is run in, if it is one.
fn sdk_around() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    let mut around = here.ancestors().map(|folder| folder.join("sdk"));
    around.find(|sdk| is_sdk(sdk))
}

/// What came with this program.
fn sdk_installed() -> Option<PathBuf> {
    let program = std::env::current_exe().ok();
    let here = program.as_deref().and_then(Path::parent);
    let beside = here.map(|here| BESIDE.map(|sdk| here.join(sdk)));
    let all = beside.into_iter().flatten();
    let sdk = all.chain([USUAL.into()]).find(|sdk| is_sdk(sdk))?;
    fs::canonicalize(sdk).ok()
}

/// Without it, no cargo could build what is made: no registry has it.
fn no_sdk() -> CliError {
    CliError::Usage {
        message: "a plugin stands on the SDK, which is not here".to_owned(),
        mend: format!(
            "install the Debian package, which has it in {USUAL}, or name the folder `sdk` of a checkout, or \
             `share/wormholes/sdk` of an archive, with --sdk PATH"
        ),
    }
}

fn given_sdk(sdk: &Path) -> Result<PathBuf, CliError> {
    if !is_sdk(sdk) {
        return Err(CliError::Usage {
            message: format!(
                "{} is not the SDK",
                format::clean(&sdk.display().to_string())
            ),
            mend: "name the folder `sdk` of a checkout of Wormholes, or of a package".to_owned(),
        });
    }
    fs::canonicalize(sdk).map_err(|error| file_error(sdk, &error))
}

fn is_sdk(folder: &Path) -> bool {
    let manifest = fs::read_to_string(folder.join("rust/Cargo.toml"));
    manifest.is_ok_and(|text| text.contains("name = \"wormholes-plugin\""))
}

/// What Cargo.toml says of a crate of the SDK.
fn dependency(sdk: &Path, folder: &str) -> Result<String, CliError> {
    let path = sdk.join(folder);
    let text = path.to_str().ok_or_else(|| CliError::File {
        path: path.clone(),
        message: "Cargo.toml cannot name a path that is not UTF-8".to_owned(),
    })?;
    Ok(format!("{{ path = {} }}", toml::Value::from(text)))
}

/// A folder that holds anything is somebody's.
fn make_empty(folder: &Path) -> Result<(), CliError> {
    let failed = |error: io::Error| file_error(folder, &error);
    fs::create_dir_all(folder).map_err(failed)?;
    if fs::read_dir(folder).map_err(failed)?.next().is_some() {
        return Err(CliError::File {
            path: folder.to_owned(),
            message: "is not empty; name a new folder".to_owned(),
        });
    }
    fs::create_dir(folder.join("src")).map_err(failed)
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    fs::write(path, text).map_err(|error| file_error(path, &error))
}

fn file_error(path: &Path, error: &io::Error) -> CliError {
    CliError::File {
        path: path.to_owned(),
        message: error.to_string(),
    }
}
