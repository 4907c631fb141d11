//! Who may know whom: the walls between the stages, checked in the source.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The modules that each module may name. A folder is one module.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("ack", &["batch", "config", "dead_letter", "message", "publish", "source"]),
    ("backoff", &["store", "telemetry"]),
    ("batch", &["merge", "message", "row"]),
    ("capture", &["message"]),
    ("cleanup", &["backoff", "config", "expiry", "state", "store", "telemetry"]),
    (
        "check",
        &["config", "decode", "finding", "message", "publish", "source", "store", "telemetry"],
    ),
    (
        "command",
        &[
            "ack",
            "batch",
            "capture",
            "check",
            "cleanup",
            "config",
            "dead_letter",
            "dead_queue",
            "decode",
            "expiry",
            "finding",
            "group_result",
            "lane",
            "listener",
            "message",
            "pipeline",
            "publish",
            "queue_depth",
            "row",
            "service",
            "source",
            "store",
            "tap",
            "task_result",
            "telemetry",
            "version",
        ],
    ),
    ("config", &["batch", "decode", "diagnosis", "expiry"]),
    ("dead_letter", &["batch", "message"]),
    ("dead_queue", &["config", "dead_letter", "message", "publish", "source", "unreadable"]),
    ("decode", &["group_result", "message", "row", "state", "task_result"]),
    ("diagnosis", &["config"]),
    ("expiry", &[]),
    ("finding", &[]),
    ("group_result", &[]),
    (
        "lane",
        &[
            "backoff",
            "config",
            "decode",
            "pipeline",
            "publish",
            "source",
            "store",
            "telemetry",
            "unreadable",
        ],
    ),
    ("lib", &[]),
    ("listener", &["telemetry"]),
    ("main", &["command", "telemetry", "version"]),
    ("merge", &["group_result", "row", "state", "task_result"]),
    ("message", &[]),
    (
        "pipeline",
        &[
            "ack",
            "backoff",
            "batch",
            "decode",
            "message",
            "publish",
            "row",
            "source",
            "store",
            "telemetry",
        ],
    ),
    ("publish", &["config", "message", "source"]),
    ("queue_depth", &["config", "source", "telemetry"]),
    ("reference", &["config"]),
    ("row", &["group_result", "task_result"]),
    ("service", &["telemetry"]),
    ("source", &["ack", "config", "diagnosis", "message", "telemetry"]),
    ("state", &[]),
    (
        "store",
        &[
            "batch",
            "config",
            "diagnosis",
            "expiry",
            "finding",
            "group_result",
            "row",
            "task_result",
        ],
    ),
    ("tap", &["config", "message", "source", "unreadable"]),
    ("task_result", &["state"]),
    ("telemetry", &["batch", "config", "row", "store", "version"]),
    ("unreadable", &["config", "message", "publish", "source"]),
    ("version", &[]),
];

/// The crates that only these modules may name.
const KEPT_IN: &[(&str, &[&str])] = &[
    ("hyper", &["command", "listener"]),
    (
        "lapin",
        &["ack", "check", "dead_queue", "publish", "queue_depth", "source", "tap", "unreadable"],
    ),
    ("prometheus_client", &["telemetry"]),
    ("sqlx", &["store"]),
];

/// Modules without a clock, without I/O, without a log and without anything asynchronous.
const PURE: &[&str] = &[
    "batch",
    "capture",
    "dead_letter",
    "decode",
    "expiry",
    "finding",
    "group_result",
    "merge",
    "message",
    "row",
    "state",
    "task_result",
];

/// What a pure module does not contain.
const IMPURE: &[&str] = &[
    "tokio",
    "tracing",
    "async ",
    ".await",
    "Utc::now",
    "Instant",
    "SystemTime",
    "std::fs",
    "std::env",
    "std::net",
];

/// Every source file: the module that it belongs to, and its text without tests and comments.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut files = Vec::<PathBuf>::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("the entry is there").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).expect("it is under src").with_extension("");
            let module = relative.iter().next().expect("a name").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).expect("it is text");
            let code = text.split("#[cfg(test)]").next().expect("the part before the tests");
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            (module, code.collect::<Vec<_>>().join("\n"))
        })
        .collect()
}

/// The modules of this crate that a text names.
fn imports(code: &str) -> BTreeSet<&str> {
    let after = |prefix| code.split(prefix).skip(1);
    after("crate::")
        .chain(after("celeriac::"))
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(rest))
        .filter(|module| !module.is_empty())
        .collect()
}

#[test]
fn modules_name_only_what_they_may() {
    let sources = sources();
    assert!(sources.len() > 20, "the files were found");
    for (module, code) in &sources {
        let (_, allowed) = MAY_IMPORT
            .iter()
            .find(|(name, _)| name == module)
            .unwrap_or_else(|| panic!("src/{module} is new: say in MAY_IMPORT what it may name"));
        for import in imports(code) {
            assert!(
                import == module || allowed.contains(&import),
                "src/{module} names crate::{import}, which it may not"
            );
        }
    }
    for (module, _) in MAY_IMPORT {
        assert!(sources.iter().any(|(name, _)| name == module), "src/{module} is gone");
    }
}

#[test]
fn libraries_of_the_rims_are_named_only_there() {
    for (module, code) in sources() {
        for (library, modules) in KEPT_IN {
            let is_named = code.contains(&format!("{library}::"));
            let may = modules.contains(&module.as_str());
            assert!(may || !is_named, "src/{module} names {library}, which it may not");
        }
    }
}

#[test]
fn the_core_is_pure() {
    for (module, code) in sources() {
        if PURE.contains(&module.as_str()) {
            for word in IMPURE {
                assert!(!code.contains(word), "src/{module} contains {word:?} and should be pure");
            }
        }
    }
}
