//! Which version of the program this is, and which commit it was built from.

use std::sync::LazyLock;

/// The version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The short hash of the commit and its day, as `1d1d869 2026-11-25`, or what `CELERIAC_COMMIT` said
/// while it was built. `build.rs` finds it out; a package from a registry does not know.
pub const COMMIT: Option<&str> = match option_env!("CELERIAC_COMMIT") {
    // `build.rs` sets it in any case.
    Some(commit) if !commit.is_empty() => Some(commit),
    _ => None,
};

/// Both: `0.1.0 (1d1d869 2026-11-25)`, or the version alone.
pub static VERSION_AND_COMMIT: LazyLock<String> =
    LazyLock::new(|| COMMIT.map_or_else(|| VERSION.to_owned(), |it| format!("{VERSION} ({it})")));
