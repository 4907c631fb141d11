//! Which version of the program this is, and which commit it was built from.

use std::sync::LazyLock;

/// The version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The short hash and the date of the commit, such as `1d1d869 2026-11-25`, or the value of
/// `CELERIAC_COMMIT` at build time. `build.rs` sets it. It is `None` in a build from a published
/// package, which has no Git history.
pub const COMMIT: Option<&str> = match option_env!("CELERIAC_COMMIT") {
    // `build.rs` always sets it, perhaps to an empty text.
    Some(commit) if !commit.is_empty() => Some(commit),
    _ => None,
};

/// The version and the commit, such as `0.1.0 (1d1d869 2026-11-25)`, or the version alone where the
/// commit is not known.
pub static VERSION_AND_COMMIT: LazyLock<String> =
    LazyLock::new(|| COMMIT.map_or_else(|| VERSION.to_owned(), |it| format!("{VERSION} ({it})")));
