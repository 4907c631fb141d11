//! Tells the program which commit it is made from.
//!
//! `CELERIAC_COMMIT` says it where there is no repository, as in a container's build; else git does,
//! where this folder is a clone. A package from a registry has neither, and its version says enough.
//! Changes that were not committed are not looked for: the program would have to be built anew after
//! every edit.

use std::path::Path;
use std::process::Command;

/// The variable, while building and for `src/version.rs`.
const COMMIT: &str = "CELERIAC_COMMIT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={COMMIT}");
    let named = std::env::var(COMMIT).ok().filter(|commit| !commit.trim().is_empty());
    // Said in any case, or else the compiler would see a variable that holds nothing but blanks.
    let commit = named.or_else(of_clone).unwrap_or_default();
    // One short line, whatever was named.
    let commit = commit.split_whitespace().collect::<Vec<_>>().join(" ");
    println!("cargo::rustc-env={COMMIT}={commit}");
}

/// The short hash and the day of the commit that is checked out here, if this folder is a clone or
/// one of its work trees, and not merely inside of one.
fn of_clone() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    // Every commit, checkout and merge appends to the log of HEAD. A clone may be without logs.
    for file in ["logs/HEAD", "HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["log", "-1", "--abbrev=7", "--date=short", "--format=%h %cd"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let done = Command::new("git").args(arguments).output().ok()?;
    let said = String::from_utf8(done.stdout).ok()?;
    done.status.success().then(|| said.trim().to_owned()).filter(|said| !said.is_empty())
}
