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


def one_by_one(group: str, *values: object, is_full: bool = False) -> list[object]:
    """Parameters of an expensive fixture, which is made once for each, and not in each process.

    Those of one group come one after the other, so that the number of groups says how much goes
    on at the same time: Celery workers are many processes.
    """
    marks = [pytest.mark.full] if is_full else []
    return [pytest.param(value, marks=[pytest.mark.xdist_group(group), *marks]) for value in values]
