//! Checks which modules each top-level module of `src/` may use. The paths are read from the tokens
//! of every source file, including test code. The top-level modules are called rooms here.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The rooms that each room may use. A room is a folder or a file at the top of `src/`.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("version", &[]),
    ("row", &[]),
    ("diagnosis", &[]),
    ("message", &[]),
    ("retry", &["diagnosis"]),
    ("decode", &["message", "row"]),
    ("config", &["decode", "diagnosis", "row"]),
    ("broker", &["config", "diagnosis", "message"]),
    ("store", &["config", "diagnosis", "row"]),
    ("telemetry", &["config", "diagnosis", "message", "row", "store", "version"]),
    ("check", &["broker", "config", "decode", "diagnosis", "message", "store"]),
    ("chords", &["broker", "message", "retry", "store", "telemetry"]),
    ("hints", &["broker", "retry", "row", "store", "telemetry"]),
    ("cleanup", &["config", "diagnosis", "retry", "row", "store", "telemetry"]),
    (
        "pipeline",
        &[
            "broker",
            "chords",
            "config",
            "decode",
            "diagnosis",
            "hints",
            "message",
            "retry",
            "row",
            "store",
            "telemetry",
        ],
    ),
    (
        "command",
        &[
            "broker",
            "check",
            "chords",
            "cleanup",
            "config",
            "decode",
            "diagnosis",
            "hints",
            "message",
            "pipeline",
            "row",
            "store",
            "telemetry",
            "version",
        ],
    ),
    ("main", &["command", "diagnosis", "version"]),
    ("lib", &[]),
];

/// Libraries, and the only folders that may use them.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("lapin", &["broker/rabbitmq"]),
    ("sqlx", &["store"]),
    ("clap", &["config", "command", "main"]),
    ("hyper", &["telemetry", "command"]),
    ("prometheus_client", &["telemetry"]),
    ("rmp_serde", &["decode"]),
    ("rsa", &["decode"]),
];

/// Rooms that use no clock, input, output or log.
const PURE: &[&str] = &["decode", "row"];

/// Paths that a pure room may not use.
const IMPURE: &[&[&str]] = &[
    &["tokio"],
    &["tracing"],
    &["fastrand"],
    &["async"],
    &["Utc", "now"],
    &["Local", "now"],
    &["Instant"],
    &["SystemTime"],
    &["std", "fs"],
    &["std", "env"],
    &["std", "net"],
    &["std", "process"],
    &["std", "thread"],
];

/// The kind of code in which a path was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the code.
    Code,
    /// In a `pub use`.
    Reexport,
    /// In a module of tests.
    Test,
}

/// Paths as lists of names, and where each was found.
type Found = Vec<(Vec<String>, Place)>;

/// A source file: its path under `src/`, without the extension, and every path that it names.
struct Source {
    path: String,
    /// All paths.
    paths: BTreeSet<Vec<String>>,
    /// Those outside of test modules.
    product_paths: BTreeSet<Vec<String>>,
    /// Those that are re-exported with `pub use`.
    reexports: BTreeSet<Vec<String>>,
}

impl Source {
    fn room(&self) -> &str {
        self.path.split('/').next().expect("a name")
    }

    /// The module that the file is, as names from the crate's root.
    fn module(&self) -> Vec<String> {
        let mut names: Vec<String> = self.path.split('/').map(str::to_owned).collect();
        if names.last().is_some_and(|name| name == "mod") {
            names.pop();
        }
        names
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut files = Vec::<PathBuf>::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("the entry is there").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let sources = files.iter().map(|file| {
        let path = file.strip_prefix(&root).expect("it is under src").with_extension("");
        let text = std::fs::read_to_string(file).expect("it is text");
        source(path.to_str().expect("UTF-8"), &text)
    });
    sources.collect()
}

fn source(path: &str, text: &str) -> Source {
    let tokens: TokenStream = text.parse().expect("it is Rust");
    let mut source = Source {
        path: path.to_owned(),
        paths: BTreeSet::new(),
        product_paths: BTreeSet::new(),
        reexports: BTreeSet::new(),
    };
    let module = source.module();
    let mut found = Found::new();
    collect(tokens, &module, Place::Code, &mut found);
    for (path, place) in found {
        match place {
            Place::Code => drop(source.product_paths.insert(path.clone())),
            Place::Reexport => drop(source.reexports.insert(path.clone())),
            Place::Test => {}
        }
        source.paths.insert(path);
    }
    source
}

/// Collects every path of a token stream. `crate`, `celeriac`, `self` and `super` become names from
/// the crate's root, so that each of our own modules is named as `crate, room, …`.
fn collect(tokens: TokenStream, module: &[String], place: Place, found: &mut Found) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    let mut is_marked_test = false;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(word) if *word == "mod" => {
                // `mod name { … }`: paths in it are relative to it.
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                    && body.delimiter() == Delimiter::Brace
                {
                    let inner = [module, &[name.to_string()]].concat();
                    let place = if is_marked_test { Place::Test } else { place };
                    collect(body.stream(), &inner, place, found);
                    at += 3;
                } else {
                    at += 2;
                }
                is_marked_test = false;
            }
            TokenTree::Ident(word) if *word == "pub" => {
                at += 1;
                // `pub(super)` names no module that is used.
                if let Some(TokenTree::Group(group)) = tokens.get(at)
                    && group.delimiter() == Delimiter::Parenthesis
                {
                    at += 1;
                }
                if let Some(TokenTree::Ident(word)) = tokens.get(at)
                    && *word == "use"
                {
                    let place = if place == Place::Code { Place::Reexport } else { place };
                    at = path(&tokens, at + 1, &mut Vec::new(), module, place, found);
                }
            }
            TokenTree::Ident(_) => {
                at = path(&tokens, at, &mut Vec::new(), module, place, found);
            }
            TokenTree::Group(group) => {
                let text = group.stream().to_string();
                if group.delimiter() == Delimiter::Bracket && text.replace(' ', "") == "cfg(test)" {
                    is_marked_test = true;
                }
                collect(group.stream(), module, place, found);
                at += 1;
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => at += 1,
        }
    }
}

/// Reads one path from `at` on, with every branch of its braces. Returns the position after it.
fn path(
    tokens: &[TokenTree],
    mut at: usize,
    names: &mut Vec<String>,
    module: &[String],
    place: Place,
    found: &mut Found,
) -> usize {
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(name)) => {
                names.push(name.to_string());
                at += 1;
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let mut inner_at = 0;
                while inner_at < inner.len() {
                    if matches!(inner[inner_at], TokenTree::Ident(_)) {
                        let mut branch = names.clone();
                        inner_at = path(&inner, inner_at, &mut branch, module, place, found);
                    } else {
                        inner_at += 1;
                    }
                }
                return at + 1;
            }
            _ => break,
        }
        let is_colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
        if is_colon(tokens.get(at)) && is_colon(tokens.get(at + 1)) {
            at += 2;
        } else {
            break;
        }
    }
    if !names.is_empty() {
        found.push((resolved(names, module), place));
    }
    at
}

/// A path within this crate, starting at the crate's root; any other path is returned unchanged.
fn resolved(names: &[String], module: &[String]) -> Vec<String> {
    let mut base = match names[0].as_str() {
        "crate" | "celeriac" => Vec::new(),
        "self" => module.to_vec(),
        "super" => module[..module.len().saturating_sub(1)].to_vec(),
        _ => return names.to_vec(),
    };
    for name in &names[1..] {
        if name == "super" {
            base.pop();
        } else if name != "self" {
            base.push(name.clone());
        }
    }
    [vec!["crate".to_owned()], base].concat()
}

/// The room that a path leads to, if it is within this crate.
fn room_of(path: &[String]) -> Option<&str> {
    let [root, room, ..] = path else { return None };
    let is_room = MAY_NAME.iter().any(|(name, _)| name == room);
    (root == "crate" && is_room).then_some(room)
}

#[test]
fn rooms_name_only_what_they_may() {
    let sources = sources();
    for source in &sources {
        let room = source.room();
        let (_, allowed) = MAY_NAME
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("src/{room} is new: say in MAY_NAME what it may name"));
        for named in source.paths.iter().filter_map(|path| room_of(path)) {
            assert!(
                named == room || allowed.contains(&named),
                "src/{} names crate::{named}, which it may not",
                source.path
            );
        }
    }
    for (room, _) in MAY_NAME {
        assert!(sources.iter().any(|source| source.room() == *room), "src/{room} is gone");
    }
}

/// Every room uses only rooms before it in the table, so there are no cycles.
#[test]
fn rooms_use_only_earlier_rooms() {
    for (place, (room, named)) in MAY_NAME.iter().enumerate() {
        for name in *named {
            let before = MAY_NAME[..place].iter().any(|(before, _)| before == name);
            assert!(before, "{room} names {name}, which does not stand before it");
        }
    }
}

/// The imports of files form no cycle. An item that a `mod.rs` re-exports counts as one of the file
/// that defines it. Test modules are ignored.
#[test]
fn imports_of_files_have_no_cycles() {
    let sources = sources();
    let modules: BTreeMap<Vec<String>, &str> =
        sources.iter().map(|source| (source.module(), source.path.as_str())).collect();
    // The longest prefix of a path that is a module, and the name of the item after it.
    let module_of = |path: &[String]| {
        let end = (1..path.len()).rev().find(|&end| modules.contains_key(&path[1..=end]))?;
        Some((modules[&path[1..=end]], path.get(end + 1).cloned()))
    };
    let mut passed_on = BTreeMap::new();
    for source in &sources {
        for path in &source.reexports {
            if let Some((file, Some(name))) = module_of(path) {
                passed_on.insert((source.path.as_str(), name), file);
            }
        }
    }
    let mut imports = BTreeMap::<&str, BTreeSet<&str>>::new();
    for source in &sources {
        for path in source.product_paths.iter().filter(|path| path[0] == "crate") {
            let Some((mut file, name)) = module_of(path) else { continue };
            while let Some(&next) = name.clone().and_then(|name| passed_on.get(&(file, name))) {
                file = next;
            }
            if file != source.path {
                imports.entry(&source.path).or_default().insert(file);
            }
        }
    }
    for start in imports.keys() {
        if let Some(circle) = cycle_from(start, &imports) {
            panic!("files import each other in a circle: {}", circle.join(" -> "));
        }
    }
}

/// The shortest cycle of imports that contains a file.
fn cycle_from<'a>(
    start: &'a str,
    imports: &BTreeMap<&'a str, BTreeSet<&'a str>>,
) -> Option<Vec<&'a str>> {
    let mut ways = VecDeque::from([vec![start]]);
    let mut reached = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for &next in imports.get(way[way.len() - 1]).into_iter().flatten() {
            let way = [way.as_slice(), &[next]].concat();
            if next == start {
                return Some(way);
            }
            if reached.insert(next) {
                ways.push_back(way);
            }
        }
    }
    None
}

#[test]
fn libraries_are_named_only_where_they_belong() {
    for source in sources() {
        for (library, folders) in LIBRARIES {
            let is_named = source.paths.iter().any(|path| path[0] == *library);
            let may = folders.iter().any(|folder| {
                source.path == *folder || source.path.starts_with(&format!("{folder}/"))
            });
            assert!(may || !is_named, "src/{} names {library}, which it may not", source.path);
        }
    }
}

#[test]
fn pure_rooms_are_pure() {
    for source in sources().iter().filter(|source| PURE.contains(&source.room())) {
        for words in IMPURE {
            let is_named = source
                .product_paths
                .iter()
                .any(|path| path.windows(words.len()).any(|part| part == *words));
            assert!(!is_named, "src/{} names {words:?} and should be pure", source.path);
        }
    }
}

#[test]
fn src_has_few_entries_at_the_top() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let entries = std::fs::read_dir(root).expect("the folder is there").count();
    assert!(entries <= 18, "src/ has {entries} entries");
}

/// The checks recognise every form of a path.
#[test]
fn every_form_of_a_path_is_recognised() {
    let named = |path: &str, text: &str| -> BTreeSet<String> {
        let source = source(path, text);
        source.paths.iter().filter_map(|path| room_of(path)).map(str::to_owned).collect()
    };
    for text in [
        "use crate::store;",
        "use crate::{row, store::Store};",
        "use crate::{row, store::{self, Store}};",
        "pub(crate) use celeriac::store::*;",
        "use super::store as other;",
        "fn f() { crate::store::f(); }",
        "type T = Vec<crate::store::T>;",
        "#[cfg(test)] use crate::row; use crate::store;",
        "#[cfg(test)] mod tests { use crate::store::T; }",
        "mod inner { use super::super::store::T; }",
        "macro_rules! m { () => { $crate::store::f() } }",
    ] {
        assert!(named("decode", text).contains("store"), "{text}");
    }
    assert!(
        !named("decode", "let crate_store = 1; // crate::store\n\"crate::store\"")
            .contains("store")
    );
    let lapin = source("decode", "fn f(e: lapin::Error) { use ::lapin::Channel; }");
    assert!(lapin.paths.iter().any(|path| path[0] == "lapin"));
}
