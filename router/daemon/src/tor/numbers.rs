//! Which keys an onion service has: each new address of a service has the next number, and its keys
//! are in a folder that the number is part of. The highest one counts, so that a crash between two
//! addresses leaves the newer.

use std::{fs, io, path::Path};

/// Where arti has the keys of onion services, below the state folder.
const KEYS: [&str; 3] = ["state", "keystore", "hss"];

/// The highest number that keys are there for; 1 where there are none yet.
pub(super) fn current(folder: &Path, service: &str) -> u32 {
    numbers(folder, service).into_iter().max().unwrap_or(1)
}

/// The name that arti knows the service by.
pub(super) fn nickname(service: &str, number: u32) -> String {
    format!("{service}_{number}")
}

/// Deletes the keys of all addresses before that of `number`: nobody shall be the service there again.
///
/// # Errors
/// Files that cannot be deleted.
pub(super) fn forget_before(folder: &Path, service: &str, number: u32) -> io::Result<()> {
    for older in numbers(folder, service) {
        if older < number {
            forget(folder, service, older)?;
        }
    }
    Ok(())
}

/// Deletes the keys of one address, where there are any.
///
/// # Errors
/// Files that cannot be deleted.
pub(super) fn forget(folder: &Path, service: &str, number: u32) -> io::Result<()> {
    match fs::remove_dir_all(keys(folder).join(nickname(service, number))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn numbers(folder: &Path, service: &str) -> Vec<u32> {
    let entries = fs::read_dir(keys(folder));
    let names = entries.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let number = |name: String| {
        let (before, number) = name.rsplit_once('_')?;
        let number = number.parse().ok()?;
        (before == service).then_some(number)
    };
    names.filter_map(number).collect()
}

fn keys(folder: &Path) -> std::path::PathBuf {
    KEYS.iter()
        .fold(folder.to_owned(), |path, part| path.join(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_keys_of_a_service_count_and_older_ones_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert_eq!(current(folder, "service_web"), 1);
        for name in [
            "service_web_1",
            "service_web_2",
            "service_web_10",
            "service_web-2_30",
            "x",
        ] {
            fs::create_dir_all(keys(folder).join(name)).unwrap();
        }
        assert_eq!(current(folder, "service_web"), 10);
        forget_before(folder, "service_web", 10).unwrap();
        let mut left: Vec<_> = fs::read_dir(keys(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["service_web-2_30", "service_web_10", "x"]);
        assert_eq!(nickname("service_web", 10), "service_web_10");
        forget(folder, "service_web", 10).unwrap();
        forget(folder, "service_web", 10).expect("it is as it shall be");
        assert_eq!(current(folder, "service_web"), 1);
    }
}
