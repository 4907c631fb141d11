"""A command of `celeriac` that ends by itself."""

from __future__ import annotations

import subprocess

from harness.daemon import binary
from harness.project import clean_environment


def celeriac(
    *arguments: object, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs it to its end, whatever that is."""
    return subprocess.run(
        [str(binary()), *map(str, arguments)],
        env=clean_environment() | (env or {}),
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


def succeed(*arguments: object, stdin: bytes = b"") -> str:
    """What a command prints that has to succeed."""
    done = celeriac(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def fail(*arguments: object, stdin: bytes = b"") -> str:
    """What a command says that has to fail."""
    done = celeriac(*arguments, stdin=stdin)
    assert done.returncode not in (0, 101), done.stdout.decode()
    return done.stderr.decode()
