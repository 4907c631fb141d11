#!/usr/bin/env python3
"""Checks that every crate we ship may be shipped under MIT OR Apache-2.0.

Works without a network, from what Cargo has. For advisories there is `cargo deny`, whose
settings are in `deny.toml`; it needs the advisory database.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

#: Permissive licences that ask for no more than their notice.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "bzip2-1.0.6",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}

#: What we ship for; the crates of other systems are not in the binary.
TARGET = "x86_64-unknown-linux-gnu"


def is_allowed(expression: str) -> bool:
    """Whether an SPDX expression of OR, AND and brackets can be met with `ALLOWED`."""
    tokens = re.findall(r"\(|\)|[^()\s/]+(?: WITH [^()\s/]+)?|/", expression)
    words = {"OR": "or", "/": "or", "AND": "and", "(": "(", ")": ")"}
    python = " ".join(words.get(token, str(token in ALLOWED)) for token in tokens)
    return bool(eval(python))  # noqa: S307 (made of the words above, True and False alone)


def main() -> int:
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    metadata = json.loads(subprocess.check_output([*command, "--filter-platform", TARGET]))
    refused = [
        f"{package['name']} {package['version']}: {package['license'] or 'names no licence'}"
        for package in metadata["packages"]
        if not is_allowed(package["license"] or "none")
    ]
    print(f"licences: {len(metadata['packages'])} crates, {len(refused)} refused")
    for line in refused:
        print(f"  {line}: find another crate, or add the licence to ALLOWED in {sys.argv[0]}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
