"""Which of many combinations `make test` runs, and which are left to `make test-full`."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from harness.database import ENGINES


def full(*values: object, marks: Iterable[pytest.MarkDecorator] = (), **options: object) -> object:
    """A parameter that only `make test-full` runs."""
    return pytest.param(*values, marks=[pytest.mark.full, *marks], **options)


def full_except(usual: str, engines: Iterable[str] = ENGINES) -> list[object]:
    """Database engines as parameters, of which `make test` runs the usual one only."""
    return [engine if engine == usual else full(engine) for engine in engines]


def on_one_worker(*values: object, is_full: bool = False) -> list[object]:
    """Parameters of which each belongs to an expensive fixture, made once and not per worker."""
    marks = [pytest.mark.full] if is_full else []
    return [
        pytest.param(value, marks=[pytest.mark.xdist_group(str(value)), *marks]) for value in values
    ]
