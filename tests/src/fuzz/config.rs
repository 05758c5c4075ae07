//! `config.toml`.

use std::path::Path;

use wormholed::Config;

/// A file's text.
pub fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let folder = Path::new("/nowhere");
    match Config::parse(&text, folder) {
        Ok(config) => {
            let longer = format!("{text}\n# The end.\n");
            let again = Config::parse(&longer, folder).unwrap();
            assert_eq!(format!("{again:?}"), format!("{config:?}"));
        }
        Err(problems) => {
            let n_lines = text.split('\n').count();
            assert!(!problems.is_empty());
            assert!(problems.is_sorted_by_key(|problem| problem.line));
            for problem in problems {
                assert!((1..=n_lines).contains(&problem.line), "{problem}");
                assert!(!problem.message.is_empty());
            }
        }
    }
}
