"""Sends Celery task results through RabbitMQ to the tables of django-celery-results.

Workers set `result_backend = "celeriac://"` (`celeriac.backend`); the daemon `celeriac`, which
this package contains, writes the rows. `"celeriac"` in Django's `INSTALLED_APPS` adds
`python manage.py celeriac run`, which starts the daemon with the project's own settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery.result import ResultBase


async def aget(
    result: ResultBase, timeout: float | None = None, propagate: bool = True
) -> Any:
    """Waits for a result or a group of results as `get` does, without blocking the event loop.

    Nor does it occupy a thread while it waits. For asynchronous views of Django.
    """
    from .waiting import aget

    return await aget(result, timeout, propagate)
