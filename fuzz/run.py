#!/usr/bin/env python3
"""Fuzzes the decoders with cargo-fuzz, one target after the other. Standard library only.

    python fuzz/run.py [--target NAME]… [--minutes N]

It begins with the captures under `tests/data` and with what earlier runs have found in
`fuzz/corpus`. An input that fails ends its target, stays in `fuzz/artifacts`, and is run again by

    CELERIAC_FUZZ_TARGET=NAME cargo +nightly fuzz run decode fuzz/artifacts/NAME/FILE

Nightly Rust and cargo-fuzz are installed where they are missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"

#: Longer inputs only cost time, and an input that costs this much is a finding.
LIMITS = ("-max_len=16384", "-timeout=10", "-rss_limit_mb=2048")


def run(*command: str, **variables: str) -> int:
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=False).returncode


def needs(*command: str, **variables: str) -> None:
    if code := run(*command, **variables):
        sys.exit(code)


def install() -> None:
    if subprocess.run(["cargo", "+nightly", "--version"], capture_output=True).returncode:
        needs("rustup", "toolchain", "install", "nightly", "--profile", "minimal")
    if subprocess.run(["cargo", "fuzz", "--version"], capture_output=True).returncode:
        needs("cargo", "install", "--locked", "cargo-fuzz")


def write_seeds() -> None:
    test = ("--test", "fuzz", "--", "--ignored", "seeds_are_written")
    needs("cargo", "test", "--locked", "--quiet", *test, CELERIAC_FUZZ_CORPUS=str(CORPUS))


def fuzz(target: str, seconds: float) -> int:
    artifacts = ROOT / "fuzz" / "artifacts" / target
    artifacts.mkdir(parents=True, exist_ok=True)
    options = (
        *LIMITS,
        f"-max_total_time={seconds:.0f}",
        f"-dict={CORPUS}.dict",
        f"-artifact_prefix={artifacts}/",
        "-print_final_stats=1",
    )
    command = ("cargo", "+nightly", "fuzz", "run", "decode", str(CORPUS / target), "--", *options)
    return run(*command, CELERIAC_FUZZ_TARGET=target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", action="append", help="by default all, one by one")
    parser.add_argument("--minutes", type=float, default=1, help="of each target")
    arguments = parser.parse_args()
    install()
    write_seeds()
    targets = arguments.target or sorted(path.name for path in CORPUS.iterdir())
    failed = [target for target in targets if fuzz(target, arguments.minutes * 60)]
    print(f"{len(targets)} targets, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
