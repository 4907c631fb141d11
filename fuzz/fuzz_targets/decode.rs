//! One of the targets in `tests/fuzz/targets.rs`: that which `CELERIAC_FUZZ_TARGET` names.
//!
//! There is one program for all of them, because most of a build is what they share.

#![no_main]

#[path = "../../tests/fuzz/targets.rs"]
mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<String> =
    LazyLock::new(|| std::env::var("CELERIAC_FUZZ_TARGET").expect("CELERIAC_FUZZ_TARGET is set"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::run(&TARGET, bytes));
