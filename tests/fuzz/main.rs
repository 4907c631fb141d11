//! Runs every decoder on damaged captures. This is a short deterministic version of `make fuzz`.
//!
//! `CELERIAC_FUZZ_SEED` is the seed of the random numbers, and `CELERIAC_FUZZ_ROUNDS` the number of
//! inputs for each target.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod mutate;
mod seeds;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::mutate::{Random, WORDS, damaged};
use crate::targets::TARGETS;

/// How many damaged inputs each target gets.
const ROUNDS: usize = 3_000;

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs a target on an input. If it panics, the error contains the input.
fn run(target: &str, bytes: &[u8], origin: &str) {
    let result = catch_unwind(AssertUnwindSafe(|| targets::run(target, bytes)));
    assert!(result.is_ok(), "{target} fails at {origin}, with {}", STANDARD.encode(bytes));
}

#[test]
fn damaged_messages_are_decoded_or_refused() {
    let seed = setting("CELERIAC_FUZZ_SEED").unwrap_or(1);
    let rounds = setting("CELERIAC_FUZZ_ROUNDS").unwrap_or(ROUNDS);
    let seeds = seeds::all();
    std::thread::scope(|scope| {
        for (target, _) in TARGETS {
            let seeds = &seeds[target];
            scope.spawn(move || {
                for (number, bytes) in seeds.iter().enumerate() {
                    run(target, bytes, &format!("input {number}"));
                }
                let mut random = Random(seed);
                for round in 0..rounds {
                    let [one, other] = [0; 2].map(|_| random.pick(seeds));
                    let bytes = damaged(&mut random, one, other);
                    run(target, &bytes, &format!("round {round} of CELERIAC_FUZZ_SEED={seed}"));
                }
            });
        }
    });
}

/// Not a test: `make fuzz` gets its first inputs from here.
#[test]
#[ignore = "writes files"]
fn seeds_are_written() {
    let folder: String = setting("CELERIAC_FUZZ_CORPUS").expect("CELERIAC_FUZZ_CORPUS is set");
    for (target, seeds) in seeds::all() {
        let folder = Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        for (number, bytes) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), bytes).expect("it is written");
        }
    }
    let quoted = |word: &[u8]| word.iter().map(|byte| format!(r"\x{byte:02x}")).collect::<Vec<_>>();
    let words = WORDS.iter().map(|word| format!("\"{}\"\n", quoted(word).concat()));
    let dictionary = words.collect::<String>();
    std::fs::write(format!("{folder}.dict"), dictionary).expect("it is written");
}
