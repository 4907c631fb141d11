"""`celeriac://?started=direct`: the row is there when the body of the task begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.broker import RESULTS, Broker
from harness.daemon import Daemon
from harness.matrix import full
from harness.project import Project

DIRECT = "celeriac://?started=direct"


SEND = """
from harness.reader import *
from shop.tasks import own_row

declare()
print(json.dumps([own_row.delay().get(timeout=60) for _ in range(40)]))
"""


@pytest.mark.parametrize("engine", ["postgresql", "mariadb", full("sqlite")])
@pytest.mark.parametrize("version", ["celery-5.7", full("celery-5.4"), full("oldest")])
def test_a_task_reads_its_own_row(
    make_project: Callable[..., Project],
    make_daemon: Callable[..., Daemon],
    version: str,
    engine: str,
    tmp_path: Path,
) -> None:
    # GIVEN a worker that writes STARTED itself, and a daemon
    project = make_project(version, engine, RESULT_BACKEND=DIRECT)
    daemon = make_daemon(project.env["CELERY_BROKER_URL"], project.env["DATABASE_URL"])
    daemon.start_consuming()
    worker = project.worker(tmp_path / "worker.log", result_backend=DIRECT)
    worker.start()
    try:
        worker.wait_for(" ready.")
        # WHEN tasks read their own row
        states = json.loads(project.execute(SEND))
        # THEN it was there each time
        assert states == ["STARTED"] * 40
    finally:
        worker.kill()


LAW = """
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

from django.conf import settings
from harness.reader import *

now = datetime.now(timezone.utc if settings.USE_TZ else None)
kinds = {
    "earlier RETRY": ("RETRY", -1, "STARTED"),
    "later RETRY": ("RETRY", 60, "RETRY"),
    "earlier FAILURE": ("FAILURE", -10, "STARTED"),
    "FAILURE of a clock that is a little behind": ("FAILURE", -1, "FAILURE"),
    "REVOKED": ("REVOKED", 60, "REVOKED"),
    "earlier SUCCESS": ("SUCCESS", -60, "SUCCESS"),
    "no row": (None, 0, "STARTED"),
}
for task_id, (state, seconds, _) in kinds.items():
    if state:
        store(task_id, status=state)
        TaskResult.objects.filter(task_id=task_id).update(
            date_done=now + timedelta(seconds=seconds)
        )
for task_id in kinds:
    app.backend.store_result(task_id, {"pid": 1}, "STARTED", request=SimpleNamespace(id=task_id))
found = dict(TaskResult.objects.values_list("task_id", "status"))
assert found == {task_id: wanted for task_id, (_, _, wanted) in kinds.items()}, found
row = TaskResult.objects.get(task_id="no row")
assert json.loads(row.result) == {"pid": 1} and row.date_created and row.date_done
assert not logged, logged
"""


@pytest.mark.parametrize("zone", ["on", "off"])
@pytest.mark.parametrize("version", ["celery-5.7", full("oldest")])
def test_only_older_rows_are_updated(
    make_project: Callable[..., Project], broker: Broker, version: str, zone: str
) -> None:
    project = make_project(version, RESULT_BACKEND=DIRECT, USE_TZ=zone)
    project.execute(LAW)
    # THEN nothing was published
    assert not broker.exists(RESULTS)


FALLBACK = """
from harness.reader import *
from django.db import connection

with connection.cursor() as cursor:
    cursor.execute("alter table django_celery_results_taskresult rename to elsewhere")
app.backend.store_result("one", {"pid": 1}, "STARTED")
app.backend.store_result("two", {"pid": 1}, "STARTED")
[warning] = [record.getMessage() for record in logged if record.levelname == "WARNING"]
assert "STARTED is sent to the daemon" in warning, warning
"""


def test_without_the_database_it_is_published(
    make_project: Callable[..., Project], broker: Broker
) -> None:
    make_project(RESULT_BACKEND=DIRECT).execute(FALLBACK)
    bodies = [json.loads(message.body) for message in broker.take(RESULTS)]
    assert [(body["task_id"], body["status"]) for body in bodies] == [
        ("one", "STARTED"),
        ("two", "STARTED"),
    ]
