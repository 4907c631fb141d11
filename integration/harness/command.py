"""Runs commands of `celeriac` that end by themselves."""

from __future__ import annotations

import subprocess

from harness.daemon import binary
from harness.project import clean_environment


def celeriac(
    *arguments: object, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command to its end and returns its result, whether it succeeded or not."""
    return subprocess.run(
        [str(binary()), *map(str, arguments)],
        env=clean_environment() | (env or {}),
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


def succeed(*arguments: object, stdin: bytes = b"") -> str:
    """Runs a command that must succeed, and returns its standard output."""
    done = celeriac(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def fail(*arguments: object, stdin: bytes = b"") -> str:
    """Runs a command that must fail without a panic, and returns its standard error."""
    done = celeriac(*arguments, stdin=stdin)
    assert done.returncode not in (0, 101), done.stdout.decode()
    return done.stderr.decode()
