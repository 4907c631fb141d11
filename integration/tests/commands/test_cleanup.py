"""`celeriac cleanup`, as a command and as scheduled by `celeriac run`. It deletes the same rows as
Celery's own cleanup, while others write.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from harness import results
from harness.broker import RESULTS
from harness.command import celeriac, succeed
from harness.daemon import Daemon, binary
from harness.database import TABLE, Database, Databases
from harness.matrix import full, full_except
from harness.pipeline import Pipeline
from harness.probe import Probe
from harness.processes import Process, wait_until
from harness.project import SITE, Project, clean_environment
from harness.services import MariaDB, PostgreSQL
from harness.users import user_without_rights

GROUPS = "django_celery_results_groupresult"

#: The number of the PostgreSQL lock, and the name of the MySQL lock without the database.
LOCK = 0x63656C6572696164

#: Rows around the limit, half a second apart, created by Django.
MAKE_ROWS = """
from datetime import datetime, timedelta, timezone
from django.conf import settings
from django.utils import timezone as zones
from django_celery_results.models import GroupResult, TaskResult

for model, key in ((TaskResult, "task_id"), (GroupResult, "group_id")):
    for number in range(-60, 240):
        done = datetime.fromtimestamp(NOW + number / 2, timezone.utc) - timedelta(days=1)
        if not settings.USE_TZ:
            done = zones.make_naive(done, zones.get_default_timezone())
        row = model.objects.create(**{key: number})
        model.objects.filter(pk=row.pk).update(date_done=done)
"""

CELERYS_CLEANUP = """
from shop.celery import app
app.tasks["celery.backend_cleanup"]()
"""


def shell(project: Project, code: str) -> str:
    return project.manage("shell", "--no-imports", "-c", code)


def insert(
    database: Database,
    ids: list[str],
    *,
    age: timedelta = timedelta(days=2),
    status: str = "SUCCESS",
    name: str | None = None,
) -> None:
    """Inserts rows of tasks that ended this long ago, in UTC."""
    done = (datetime.now(timezone.utc) - age).strftime("%Y-%m-%d %H:%M:%S.%f")
    zone = "+00" if database.engine == "postgresql" else ""
    name = "null" if name is None else f"'{name}'"
    for first in range(0, len(ids), 500):
        rows = ", ".join(
            f"('{id}', '{status}', {name}, 'application/json', 'utf-8', 'null', '{done}{zone}', "
            f"'{done}{zone}')"
            for id in ids[first : first + 500]
        )
        database.execute(
            f"insert into {TABLE} (task_id, status, task_name, content_type, content_encoding, "
            f"result, date_done, date_created) values {rows}"
        )


def ids(database: Database) -> set[str]:
    return {task_id for (task_id,) in database.query(f"select task_id from {TABLE}")}


@pytest.mark.parametrize(
    ("engine", "use_tz"),
    [
        ("postgresql", True),
        ("mariadb", False),
        full("sqlite", False),
        full("postgresql", False),
        full("mariadb", True),
        full("sqlite", True),
    ],
)
def test_the_rows_that_celery_would_delete(
    engine: str, use_tz: bool, python: dict[str, Path], databases: Databases
) -> None:
    # GIVEN two copies of the same rows of a project in Paris, seconds to a minute around the limit
    settings = {"USE_TZ": "on" if use_tz else "off", "TIME_ZONE": "Europe/Paris"}
    now = time.time()
    if ZoneInfo("Europe/Paris").utcoffset(datetime.now()) != ZoneInfo("Europe/Paris").utcoffset(
        datetime.now() - timedelta(days=1, minutes=3)
    ):
        pytest.skip("Django does not account for the hour of the clock change")
    left = []
    for ours in (False, True):
        database = databases.migrated(engine)
        project = Project(python["celery-5.7"], database.url, "amqp://nobody", settings)
        shell(project, f"NOW = {now!r}\n{MAKE_ROWS}")
        # WHEN Celery cleans up one copy, and Celeriac with Django's settings the other
        before = time.time() - now
        if ours:
            project.env["CELERIAC_BIN"] = str(binary())
            told = project.manage("celeriac", "cleanup", "--cleanup-batch", "7", "--cleanup-pause", "0s")
            assert "rows of tasks" in told
        else:
            shell(project, CELERYS_CLEANUP)
        after = time.time() - now
        # THEN both have deleted exactly the rows that had expired by then
        for table, key in ((TABLE, "task_id"), (GROUPS, "group_id")):
            there = sorted(int(id) for (id,) in database.query(f"select {key} from {table}"))
            assert there == list(range(there[0], 240)), "the oldest are gone"
            assert before <= there[0] / 2 <= after + 0.5, (ours, table)
        left.append(database.count())
    assert 0 < min(left) and max(left) < 300


def test_expiry_by_state_and_task(engine: str, databases: Databases, tmp_path: Path) -> None:
    # GIVEN rows of two and of forty days, in several states and of several tasks
    database = databases.migrated(engine)
    for days in (2, 40):
        for status in ("SUCCESS", "FAILURE", "STARTED"):
            for name in (None, "shop.pay", "shop.audit.login"):
                insert(
                    database, [f"{status}-{name}-{days}"], age=timedelta(days=days), status=status,
                    name=name,
                )
    before = ids(database)
    config = tmp_path / "celeriac.toml"
    config.write_text(
        "result-expires = 86400\n"
        "result-expires-by-state = 'FAILURE=30days,STARTED=never'\n"
        "result-expires-by-task = 'shop.audit.*=never,shop.pay=3days'\n"
    )
    options = ["cleanup", "--database", database.url, "--config", config]
    # WHEN it is a dry run
    told = json.loads(succeed(*options, "--dry-run", "--json"))
    # THEN nothing changes
    assert ids(database) == before
    # WHEN it is run
    done = json.loads(succeed(*options, "--json"))
    # THEN the rows of the dry run are deleted, which are those that the settings select
    assert (told["dry_run"], done["dry_run"]) == (True, False)
    assert [done[key] for key in ("tasks", "groups", "rows")] == [
        told[key] for key in ("tasks", "groups", "rows")
    ]
    gone = {
        "SUCCESS-None-2", "SUCCESS-None-40", "FAILURE-None-40",
        "SUCCESS-shop.pay-40", "FAILURE-shop.pay-40", "STARTED-shop.pay-40",
    }
    assert before - ids(database) == gone
    assert done["tasks"] == 6 and done["complete"]
    rows = {(row["state"], row["by"], row["expires_seconds"]): row["rows"] for row in done["rows"]}
    assert rows == {
        ("SUCCESS", "result-expires", 86400): 2,
        ("FAILURE", "result-expires-by-state FAILURE", 30 * 86400): 1,
        **{(state, "result-expires-by-task shop.pay", 3 * 86400): 1
           for state in ("SUCCESS", "FAILURE", "STARTED")},
    }
    # AND the output is a table unless JSON is asked for
    insert(database, ["again"])
    table = succeed(*options)
    assert [line.split() for line in table.splitlines()][:2] == [
        ["ROWS", "TABLE", "STATE", "EXPIRES", "AFTER", "BY"],
        ["1", "tasks", "SUCCESS", "1day", "result-expires"],
    ]
    assert table.endswith("1 rows of tasks and 0 of groups were deleted\n")


def test_nothing_expires_if_celery_never_expires(engine: str, databases: Databases) -> None:
    database = databases.migrated(engine)
    insert(database, ["old"], age=timedelta(days=9999))
    for value in ("0", "never", "", " 1000000000000 "):
        env = {"CELERIAC_RESULT_EXPIRES": value, "CELERY_RESULT_EXPIRES": "0"}
        done = celeriac("cleanup", "--database", database.url, env=env)
        assert done.returncode == 0, done.stderr
        is_ever = "1000" in value
        assert (b"nothing ever expires" in done.stdout) != is_ever, done.stdout
    assert database.count() == 1


@pytest.mark.parametrize("engine", full_except("mariadb"))
def test_cleanup_while_others_write(
    own_pipeline: Pipeline, python: dict[str, Path], tmp_path: Path
) -> None:
    # GIVEN many expired rows, some of tasks that are about to end
    pipeline, database = own_pipeline, own_pipeline.database
    old = [f"old-{number}" for number in range(3000)]
    ending = [f"ending-{number}" for number in range(600)]
    for first in range(0, 3000, 300):
        insert(database, old[first : first + 300])
        insert(database, ending[first // 5 : first // 5 + 60], status="RETRY")
    pipeline.daemon.start_consuming()
    # WHEN these tasks end, others start, and three cleanups run, one of them Celery's
    options = ["--database", database.url, "--cleanup-batch", "20", "--cleanup-pause", "5ms"]
    cleaners = [
        Process("cleanup", [binary(), "cleanup", *options], tmp_path / f"{number}.log",
                env=clean_environment())
        for number in range(2)
    ]
    project = Project(python["celery-5.7"], database.url, pipeline.broker.url)
    theirs = Process(
        "Celery's cleanup",
        [project.python, "manage.py", "shell", "--no-imports", "-c", CELERYS_CLEANUP],
        tmp_path / "celery.log", env=project.env, cwd=SITE,
    )
    for process in (*cleaners, theirs):
        process.start()
    try:
        fresh = [f"fresh-{number}" for number in range(600)]
        for first in range(0, 600, 20):
            done = datetime.now(timezone.utc).isoformat()
            some = ending[first : first + 20] + fresh[first : first + 20]
            pipeline.broker.publish(*(results.result(id, date_done=done) for id in some))
        pipeline.wait_for_rows(dict.fromkeys(ending + fresh, "SUCCESS"), 60)
        for process in (*cleaners, theirs):
            wait_until(lambda: not process.is_alive(), process.name, 60)
            assert process.exit_code == 0, process.last_words()
    finally:
        for process in (*cleaners, theirs):
            process.kill()
    # THEN all rows that were updated or inserted are kept, and all others are deleted
    pipeline.stop_and_check_queues()
    assert database.statuses() == dict.fromkeys(ending + fresh, "SUCCESS")
    log = pipeline.daemon.output()
    assert '"level":"ERROR"' not in log and '"level":"WARN"' not in log, log


@pytest.mark.parametrize(
    ("engine", "signal_number"),
    [
        ("postgresql", signal.SIGTERM),
        ("mariadb", signal.SIGTERM),
        ("sqlite", signal.SIGINT),
    ],
)
def test_it_stops_between_two_batches(
    engine: str, databases: Databases, tmp_path: Path, signal_number: int
) -> None:
    # GIVEN a slow cleanup
    database = databases.migrated(engine)
    insert(database, [str(number) for number in range(1000)])
    options = ["--database", database.url, "--cleanup-batch", "10", "--cleanup-pause", "30s"]
    command = [binary(), "cleanup", *options, "--json"]
    process = Process("cleanup", command, tmp_path / "log", env=clean_environment())
    process.start()
    try:
        wait_until(lambda: database.count() < 1000, "the first batch", 30)
        # WHEN it is asked to stop
        assert process.stop(10, signal_number) == 0
    finally:
        process.kill()
    # THEN it reports what it has deleted, and the other rows are still there
    (line,) = [line for line in process.output().splitlines() if line.startswith("{")]
    told = json.loads(line)
    assert told["complete"] is False
    assert (told["tasks"], database.count()) == (10, 990)
    # AND the next cleanup continues
    told = json.loads(succeed("cleanup", "--database", database.url, "--json"))
    assert (told["tasks"], told["complete"], database.count()) == (990, True, 0)


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_the_schedule(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon], engine: str
) -> None:
    # GIVEN a daemon that cleans up, and another that does not
    database, probe = own_pipeline.database, Probe()
    options = ["--cleanup-every", "1s", "--result-expires", "1h"]
    daemons = [
        make_daemon(own_pipeline.broker.url, database.url, *options, *more)
        for more in (probe.options, [])
    ]
    insert(database, ["old"])
    insert(database, ["young"], age=timedelta(minutes=30))
    for daemon in daemons:
        daemon.start_consuming()
    # THEN expired rows are deleted again and again
    wait_until(lambda: ids(database) == {"young"}, "the row to go", 30)
    insert(database, [str(number) for number in range(1500)])
    wait_until(lambda: ids(database) == {"young"}, "the rows to go", 30)
    # AND the metrics count it
    assert daemons[1].stop() == 0
    insert(database, ["one", "two"])
    before = probe.value("cleanup_rows_total", table=TABLE)
    wait_until(
        lambda: probe.value("cleanup_rows_total", table=TABLE) == before + 2, "the count", 30
    )
    assert probe.value("cleanup_rows_total", table=GROUPS) == 0
    wait_until(lambda: probe.value("cleanup_runs_total", outcome="done") > 1, "the end", 30)
    last = probe.value("cleanup_last_success_timestamp_seconds")
    assert time.time() - 30 < last <= time.time() + 1
    assert '"message":"expired rows are deleted"' in daemons[0].output()
    # AND results are still stored
    task_id = results.new_id()
    done = datetime.now(timezone.utc).isoformat()
    own_pipeline.broker.publish(results.result(task_id, date_done=done))
    wait_until(lambda: task_id in ids(database), "the row", 30)
    assert daemons[0].stop(10) == 0


@pytest.mark.parametrize("engine", ["sqlite"])
def test_no_schedule_unless_it_is_asked_for(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon], engine: str
) -> None:
    database, probe = own_pipeline.database, Probe()
    insert(database, ["old"])
    url = own_pipeline.broker.url
    daemon = make_daemon(url, database.url, "--result-expires", "1s", *probe.options)
    daemon.start_consuming()
    time.sleep(3)
    assert ids(database) == {"old"}
    assert probe.value("cleanup_runs_total", outcome="done") is None
    assert daemon.stop() == 0


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_one_daemon_cleans_up_at_a_time(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon], engine: str
) -> None:
    # GIVEN another daemon that is cleaning up
    database, probe = own_pipeline.database, Probe()
    lock = {
        "postgresql": f"select pg_try_advisory_lock({LOCK})",
        "mariadb": (
            "select get_lock(concat('celeriac.cleanup.', left(sha2(database(), 256), 32)), 0)"
        ),
    }[engine]
    insert(database, ["old"])
    daemon = make_daemon(
        own_pipeline.broker.url, database.url, "--cleanup-every", "1s", *probe.options
    )
    with database.connect() as connection:
        cursor = connection.cursor()
        cursor.execute(lock)
        assert cursor.fetchone()[0] == 1
        # THEN ours does not clean up
        daemon.start_consuming()
        wait_until(
            lambda: (probe.value("cleanup_runs_total", outcome="elsewhere") or 0) >= 2, "tries", 30
        )
        assert ids(database) == {"old"}
        assert probe.value("cleanup_runs_total", outcome="done") == 0
    # WHEN the other one is gone, THEN ours cleans up
    wait_until(lambda: not ids(database), "the row to go", 30)
    assert daemon.stop() == 0


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_a_failed_cleanup_does_not_stop_the_daemon(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon], engine: str
) -> None:
    # GIVEN rows that cannot be deleted because of a foreign key
    database, probe = own_pipeline.database, Probe()
    insert(database, ["old"])
    database.execute(
        f"create table note (task integer, foreign key (task) references {TABLE} (id))"
    )
    database.execute(f"insert into note select id from {TABLE}")
    done = celeriac("cleanup", "--database", database.url)
    assert done.returncode == 1
    assert "ON DELETE CASCADE" in done.stderr.decode()
    # WHEN a daemon cleans up
    options = ["--cleanup-every", "1s", *probe.options]
    daemon = make_daemon(own_pipeline.broker.url, database.url, *options)
    daemon.start_consuming()
    wait_until(lambda: probe.value("cleanup_runs_total", outcome="failed") == 2, "failures", 30)
    # THEN the failure is counted and logged, and results are still stored
    assert "ON DELETE CASCADE" in daemon.output()
    task_id = results.new_id()
    own_pipeline.broker.publish(results.result(task_id))
    wait_until(lambda: task_id in ids(database), "the row", 30)
    assert probe.is_ready() and probe.value("cleanup_last_success_timestamp_seconds") is None
    assert daemon.stop() == 0
    assert own_pipeline.broker.depth(RESULTS) == 0


def test_missing_tables_and_permissions_are_named(
    engine: str, databases: Databases, postgresql: PostgreSQL, mariadb: MariaDB
) -> None:
    # A table
    empty = databases.empty(engine)
    if engine == "sqlite":
        empty.execute("create table other (id integer)")
    done = celeriac("cleanup", "--database", empty.url)
    assert done.returncode == 1 and not done.stdout
    [line] = done.stderr.decode().splitlines()
    assert line.startswith(f"celeriac: the table {TABLE} does not exist: ")
    assert "manage.py migrate django_celery_results" in line
    # A permission
    if engine != "sqlite":
        database = databases.migrated(engine)
        insert(database, ["old"])
        with user_without_rights(database, postgresql, mariadb) as url:
            done = celeriac("cleanup", "--database", url)
        assert done.returncode == 1
        words = done.stderr.decode()
        assert "this user needs the rights SELECT, UPDATE and DELETE on the table" in words
        assert "secret" not in words
    # The database
    nowhere = {
        "postgresql": "postgres://nobody@127.0.0.1:9/none",
        "mariadb": "mysql://nobody@127.0.0.1:9/none",
        "sqlite": "sqlite:////nowhere/db.sqlite3",
    }[engine]
    began = time.monotonic()
    done = celeriac("cleanup", "--database", nowhere)
    assert done.returncode == 1 and time.monotonic() - began < 10
    assert done.stderr.decode().startswith("celeriac: ")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--result-expires=soon", 'result-expires: "soon" is not a duration'),
        ("--result-expires=-1", 'result-expires: "-1" is not a duration'),
        ("--result-expires-by-state=FAILURE", 'result-expires-by-state: "FAILURE" is not a name'),
        ("--result-expires-by-task=a[=1h", 'result-expires-by-task: "a[" is not a pattern'),
        ("--cleanup-batch=0", 'cleanup-batch: "0" is out of range: write a number from 1'),
        ("--cleanup-pause=1h", 'cleanup-pause: "1h" is not a duration up to 60s'),
        ("--cleanup-every=0s", 'cleanup-every: "0s" is not a duration from 1s to 40days'),
    ],
)
def test_wrong_settings_are_refused(option: str, words: str) -> None:
    for command in ("cleanup", "run"):
        done = celeriac(command, option)
        assert done.returncode == 2
        assert done.stderr.decode().startswith(f"celeriac: {words}")


def test_an_unknown_state_causes_a_warning(databases: Databases) -> None:
    database = databases.migrated("sqlite")
    option = "--result-expires-by-state=FAILED=30days,FAILURE=30days"
    words = celeriac("cleanup", "--database", database.url, option).stderr.decode()
    assert words.count("none of Celery's") == 1 and "FAILED" in words
