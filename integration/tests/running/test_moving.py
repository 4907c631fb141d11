"""Changes from `django-db` to `celeriac://` and back, one worker at a time, while tasks are
running.

Meanwhile the workers of one queue have different result backends. The steps are those in
`docs/operating.md`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from celery import Celery

from harness.broker import DEAD, RESULTS, Broker
from harness.daemon import Daemon
from harness.database import Database
from harness.matrix import full_except
from harness.pipeline import Pipeline
from harness.processes import Process, wait_until
from harness.project import Project
from harness.services import unique_name

#: Tasks and how they end. One in four has three attempts, which can be on different workers.
TASKS = {
    ("shop.tasks.add", (2, 3)): "SUCCESS",
    ("shop.tasks.price", ("leek",)): "SUCCESS",
    ("shop.tasks.reserve", ("leek",)): "FAILURE",
    ("shop.tasks.charge_card", ("4111",)): "SUCCESS",
}

#: How long each step lasts.
STEP_SECONDS = 4.0

SECONDS = 120


class Caller:
    """Sends tasks continuously until the block ends."""

    def __init__(self, broker: str) -> None:
        self._app = Celery(broker=broker, set_as_current=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.wanted: dict[str, str] = {}

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._app.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for (name, arguments), state in TASKS.items():
                sent = self._app.send_task(name, arguments, queue="celery", ignore_result=False)
                self.wanted[sent.id] = state
                time.sleep(0.1)


class Fleet:
    """The workers of a project, each with its own name and result backend."""

    def __init__(self, project: Project, folder: Path) -> None:
        self._project = project
        self._folder = folder

    def worker(self, backend: str) -> Process:
        name = unique_name()
        worker = self._project.worker(
            self._folder / f"{name}.log",
            "--hostname",
            f"{name}@test",
            result_backend=backend,
        )
        worker.start()
        worker.wait_for("ready.", SECONDS)
        return worker


@pytest.fixture
def fleet(own_pipeline: Pipeline, python: dict[str, Path], tmp_path: Path) -> Iterator[Fleet]:
    database, broker = own_pipeline.database, own_pipeline.broker
    fleet = Fleet(Project(python["celery-5.7"], database.url, broker.url), tmp_path)
    with ExitStack() as stack:
        start = fleet.worker

        def worker(backend: str) -> Process:
            one = start(backend)
            stack.callback(one.kill)
            return one

        fleet.worker = worker  # type: ignore[method-assign]
        yield fleet


def missing(database: Database, wanted: dict[str, str]) -> dict[str, str | None]:
    statuses = database.statuses()
    return {id: statuses.get(id) for id, state in wanted.items() if statuses.get(id) != state}


def drain(broker: Broker) -> None:
    """Waits until the queue is empty and the daemon has no unacknowledged messages."""
    wait_until(lambda: broker.depth(RESULTS) == 0, "the results queue to be empty", SECONDS)


@pytest.mark.parametrize(
    "engine", full_except("postgresql", ["postgresql", "mariadb"]), indirect=True
)
def test_a_fleet_moves_there_and_back_without_losing_a_row(
    own_pipeline: Pipeline, fleet: Fleet
) -> None:
    broker, database, daemon = own_pipeline.broker, own_pipeline.database, own_pipeline.daemon
    counts = {}
    with Caller(broker.url) as caller:

        def for_a_while(step: str) -> None:
            time.sleep(STEP_SECONDS)
            counts[step] = len(caller.wanted)

        # GIVEN workers that write to the database themselves
        old = fleet.worker("django-db")
        for_a_while("django-db")

        # WHEN the daemon is started, and one worker after another is replaced, and then the reverse
        daemon.start_consuming()
        new = fleet.worker("celeriac://")
        for_a_while("both")
        assert old.stop(SECONDS) == 0, "a warm shutdown"
        for_a_while("celeriac://")
        old = fleet.worker("django-db")
        for_a_while("both again")
        assert new.stop(SECONDS) == 0
        drain(broker)
        assert daemon.stop() == 0
        for_a_while("django-db again")

    # THEN every task of every step has its row with a final state
    assert all(count > 0 for count in counts.values())
    try:
        wait_until(lambda: not missing(database, caller.wanted), "every row", 3 * SECONDS, 0.5)
    except Exception as error:
        error.add_note(f"{missing(database, caller.wanted)}")
        raise
    assert old.stop(SECONDS) == 0
    assert not missing(database, caller.wanted)
    assert database.count() == len(caller.wanted)
    # AND both backends were used, and the queues are empty
    assert {row["task_name"] for row in database.rows().values()} == {name for name, _ in TASKS}
    assert broker.depth(RESULTS) == 0 and broker.depth(DEAD) == 0


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_results_left_in_the_queue_are_stored_later(
    own_pipeline: Pipeline, fleet: Fleet, make_daemon: Callable[..., Daemon]
) -> None:
    broker, database = own_pipeline.broker, own_pipeline.database
    with Caller(broker.url) as caller:
        # GIVEN a worker with celeriac://, and no daemon
        new = fleet.worker("celeriac://")
        time.sleep(STEP_SECONDS)
        # WHEN it is replaced before a daemon has ever run, also with tasks between two attempts
        old = fleet.worker("django-db")
        assert new.stop(SECONDS) == 0
        time.sleep(STEP_SECONDS)
    rows_of_the_old = {}

    def is_settled() -> bool:
        nonlocal rows_of_the_old
        before, rows_of_the_old = rows_of_the_old, database.statuses()
        return before == rows_of_the_old and not {"STARTED", "RETRY"} & set(before.values())

    wait_until(is_settled, "the last task of the old worker", SECONDS, 2)
    assert old.stop(SECONDS) == 0
    left = broker.depth(RESULTS)
    assert left > 0 and missing(database, caller.wanted)

    # THEN its results wait in the queue until a daemon is started
    own_pipeline.daemon.start_consuming()
    own_pipeline.wait_for_rows(caller.wanted, SECONDS)
    own_pipeline.stop_and_check_queues()
    # AND what the old worker had stored does not change
    for task_id, state in rows_of_the_old.items():
        assert database.statuses()[task_id] == state


# Chords ---------------------------------------------------------------------------------------


def counters(database: Database) -> int:
    return database.query("select count(*) from django_celery_results_chordcounter")[0][0]


def start_chord(project: Project, backend: str) -> str:
    """Starts a chord in a process with Django, and returns the id of its body."""
    code = (
        "from celery import chord; from shop.tasks import add, total; "
        "print('body', chord([add.s(1, 1), add.s(2, 2)])(total.s()).id)"
    )
    one = Project(project.python, project.env["DATABASE_URL"], project.env["CELERY_BROKER_URL"],
                  {"RESULT_BACKEND": backend})
    said = one.manage("shell", "--no-imports", "-c", code)
    return said.rpartition("body ")[2].strip()


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_chord_started_with_celeriac_ends_on_any_worker(
    own_pipeline: Pipeline, fleet: Fleet, python: dict[str, Path]
) -> None:
    database = own_pipeline.database
    project = Project(python["celery-5.7"], database.url, own_pipeline.broker.url)
    own_pipeline.daemon.start_consuming()
    body = start_chord(project, "celeriac://")
    fleet.worker("django-db")
    wait_until(lambda: database.statuses().get(body) == "SUCCESS", "the body's row", SECONDS)
    assert counters(database) == 0


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_chord_started_with_django_db_needs_its_workers(
    own_pipeline: Pipeline, fleet: Fleet, python: dict[str, Path]
) -> None:
    """As the guide warns: `celeriac://` does not count members, so such a chord never ends."""
    database = own_pipeline.database
    project = Project(python["celery-5.7"], database.url, own_pipeline.broker.url)
    own_pipeline.daemon.start_consuming()
    body = start_chord(project, "django-db")
    fleet.worker("celeriac://")
    members = lambda: list(database.statuses().values()).count("SUCCESS")
    wait_until(lambda: members() == 2, "its members", SECONDS)
    time.sleep(5)
    assert body not in database.statuses()
    assert counters(database) == 1, "the guide says to look for this before a move"
