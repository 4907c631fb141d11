"""Selects the combinations that `make test` runs; `make test-full` runs all."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from harness.database import ENGINES


def full(*values: object, marks: Iterable[pytest.MarkDecorator] = (), **options: object) -> object:
    """A parameter that only `make test-full` runs."""
    return pytest.param(*values, marks=[pytest.mark.full, *marks], **options)


def full_except(usual: str, engines: Iterable[str] = ENGINES) -> list[object]:
    """Parameters for all engines, of which `make test` runs only `usual`."""
    return [engine if engine == usual else full(engine) for engine in engines]


def one_by_one(group: str, *values: object, is_full: bool = False) -> list[object]:
    """Parameters of an expensive fixture, which is created once in total and not in each process.

    The parameters of a group run one after another, so the number of groups limits how many run at
    the same time: a Celery worker has many processes.
    """
    marks = [pytest.mark.full] if is_full else []
    return [pytest.param(value, marks=[pytest.mark.xdist_group(group), *marks]) for value in values]
