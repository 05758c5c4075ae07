//! The cookbook of the SDK's README: whole plugins, each compiled by the kit's documentation tests.

use std::fs;

use wormholes_tests::workspace;

/// So many tasks at least.
const TASKS: usize = 10;
/// What is among them, and what its plugin must use.
const AMONG: [(&str, &str); 5] = [
    ("blobs", "fn blob_fetched("),
    ("HTTP requests that come", "fn http("),
    ("HTTP requests to servers", "fn fetched("),
    ("connections", "fn data("),
    ("what one tests with", "every_fault::<"),
];

/// The title of each task, and its plugin.
fn tasks() -> Vec<(String, String)> {
    let readme = fs::read_to_string(workspace::root().join("sdk/README.md")).unwrap();
    let (_, cookbook) = readme.split_once("\n## Cookbook\n").unwrap();
    let cookbook = cookbook.split("\n## ").next().unwrap();
    let tasks = cookbook.split("\n### ").skip(1);
    let task = |task: &str| {
        let (title, text) = task.split_once('\n').unwrap();
        let mut blocks = text.split("\n```rust\n").skip(1);
        let block = blocks.next();
        let code = block.unwrap_or_else(|| panic!("{title} has no plugin that is compiled"));
        assert!(blocks.next().is_none(), "{title} has more than one");
        let (code, _) = code.split_once("\n```\n").unwrap();
        (title.to_owned(), code.to_owned())
    };
    tasks.map(task).collect()
}

#[test]
fn the_cookbook_has_ten_whole_plugins_and_what_it_promises_is_among_them() {
    let tasks = tasks();
    assert!(tasks.len() >= TASKS, "{tasks:?}");
    for (title, code) in &tasks {
        assert!(code.contains("impl Plugin for "), "{title} is no plugin");
    }
    for (what, uses) in AMONG {
        let is_there = tasks.iter().any(|(_, code)| code.contains(uses));
        assert!(is_there, "nothing is about {what}");
    }
    // What compiles them.
    let kit = fs::read_to_string(workspace::root().join("sdk/kit/src/lib.rs")).unwrap();
    let compiled = "#[cfg(doctest)]\n#[doc = include_str!(\"../../README.md\")]";
    assert!(kit.contains(compiled), "nothing compiles the README");
}
