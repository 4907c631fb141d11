"""Each problem of a setup is reported in one line that says what is wrong, where, and how to fix
it, and never contains a password.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harness import results
from harness.broker import RESULTS, Broker
from harness.command import celeriac
from harness.daemon import Daemon
from harness.database import TABLE, Database, Databases
from harness.processes import wait_until
from harness.services import HOST, MariaDB, PostgreSQL, RabbitMQ, unique_name
from harness.users import ADVICE, with_login

SECRET = "hunter2"


@pytest.fixture
def says(make_daemon: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Starts a daemon and waits until one of its errors contains all the words."""

    def check(broker: str, database: str, *words: str, seconds: float = 25) -> Daemon:
        daemon = make_daemon(broker, database)
        daemon.start()

        def errors() -> list[str]:
            lines = [line for line in daemon.output().splitlines() if line.startswith("{")]
            fields = [json.loads(line)["fields"] for line in lines]
            return [field["error"] for field in fields if "error" in field]

        daemon.wait_while_alive(
            lambda: any(all(word in error for word in words) for error in errors()),
            f"an error with {words}",
            seconds,
        )
        assert SECRET not in daemon.output()
        return daemon

    return check


@pytest.fixture
def good_database(databases: Databases) -> str:
    return databases.migrated("sqlite").url


# The broker ---------------------------------------------------------------------------------


def test_the_broker(rabbitmq: RabbitMQ, good_database: str, says: Callable[..., Daemon]) -> None:
    url = rabbitmq.create()
    user = unique_name()
    rabbitmq.control("add_user", user, "right")
    try:
        theirs = with_login(url, user, "right")
        check = "check the host and the port in the URL"
        for broker, words in {
            with_login(url, user, SECRET): ["Login was refused", "check the user and the password"],
            with_login(rabbitmq.url_of("celeriac_test_none"), user, "right"): [
                "vhost celeriac_test_none not found",
                "correct the virtual host in the broker URL, or create it",
            ],
            theirs: ["access to vhost", f"refused for user '{user}'", "docs/security.md"],
            f"amqp://u:{SECRET}@nowhere.invalid//": ["nowhere.invalid", "check the host in the URL"],
            f"amqp://u:{SECRET}@{HOST}:1//": [f"{HOST}:1", "Connection refused", check],
            # An address from the range for documentation, where nothing answers.
            f"amqp://u:{SECRET}@192.0.2.1//": ["192.0.2.1", check],
        }.items():
            says(broker, good_database, *words).kill()
    finally:
        rabbitmq.control("delete_user", user)


# The databases ------------------------------------------------------------------------------


def test_postgresql(
    rabbitmq: RabbitMQ, databases: Databases, postgresql: PostgreSQL, says: Callable[..., Daemon]
) -> None:
    database = databases.migrated("postgresql")
    broker = rabbitmq.create()
    where = urlsplit(database.url)
    for url, words in {
        postgresql.url_of("celeriac_test_none"): [
            'cannot use postgres://',
            'database "celeriac_test_none" does not exist',
            "make it, or correct its name in the database URL",
        ],
        with_login(database.url, "celeriac_test_nobody", SECRET): [
            'role "celeriac_test_nobody" does not exist',
            "check the user in the database URL",
        ],
        f"postgres://u:{SECRET}@{HOST}:1/n": [f"{HOST}:1", "Connection refused", "check the host"],
        f"postgres://u:{SECRET}@nowhere.invalid/n": ["nowhere.invalid", "check the host in the URL"],
        f"postgres://u:{SECRET}@%2Fnowhere/n": ["%2Fnowhere", "check the path of the socket"],
    }.items():
        says(broker, url, *words).kill()
    # WHEN the database is read-only
    database.execute(f"alter database {where.path[1:]} set default_transaction_read_only = on")
    Broker(broker).declare(RESULTS)
    Broker(broker).publish(results.result(results.new_id()))
    daemon = says(broker, database.url, "read-only transaction", "write the URL of the primary")
    daemon.kill()


def test_a_column_is_missing(
    rabbitmq: RabbitMQ, databases: Databases, says: Callable[..., Daemon]
) -> None:
    database = databases.migrated("postgresql")
    database.execute(f"alter table {TABLE} drop column worker")
    says(rabbitmq.create(), database.url, "has no column worker", "manage.py migrate").kill()


def test_mariadb(
    rabbitmq: RabbitMQ, databases: Databases, mariadb: MariaDB, says: Callable[..., Daemon]
) -> None:
    database = databases.migrated("mariadb")
    broker = rabbitmq.create()
    user = unique_name()
    mariadb.sql(f"create user {user}@'%' identified by 'right'")
    try:
        for url, words in {
            mariadb.url_of("celeriac_test_none"): [
                "Unknown database 'celeriac_test_none'",
                "make it, or correct its name in the database URL",
            ],
            with_login(database.url, user, SECRET): ["Access denied", "check the user and the pass"],
            with_login(database.url, user, "right"): ["Access denied", ADVICE],
            f"mysql://u:{SECRET}@{HOST}:1/n": [f"{HOST}:1", "Connection refused", "check the host"],
            f"mysql://u:{SECRET}@nowhere.invalid/n": ["nowhere.invalid", "check the host in the"],
            f"mysql://u:{SECRET}@localhost/n?socket=/nowhere": ["check the path of the socket"],
        }.items():
            says(broker, url, *words).kill()
    finally:
        mariadb.sql(f"drop user {user}@'%'")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"]
    subprocess.run(["mount", *options, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_sqlite(
    rabbitmq: RabbitMQ, databases: Databases, says: Callable[..., Daemon], tmp_path: Path
) -> None:
    broker = rabbitmq.create()
    no_database = tmp_path / "text"
    no_database.write_text("no database " * 500)
    empty = tmp_path / "empty"
    empty.touch()
    for path, words in {
        Path("/nowhere/at/all"): ["there is no file /nowhere/at/all", "check the path"],
        tmp_path: [str(tmp_path), "give the user who runs Celeriac write access to the file and to its folder"],
        no_database: [str(no_database), "write the path of Django's database"],
        empty: ["the table", "does not exist", "celeriac migrate"],
    }.items():
        says(broker, f"sqlite:///{path}", *words).kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a small disk")
def test_a_full_disk(
    rabbitmq: RabbitMQ, databases: Databases, says: Callable[..., Daemon], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as folder:
        source = Path(databases.migrated("sqlite").url.removeprefix("sqlite:///"))
        path = folder / "db"
        path.write_bytes(source.read_bytes())
        url = rabbitmq.create()
        broker, database = Broker(url), Database(f"sqlite:///{path}")
        # GIVEN more results than there is disk space for
        broker.declare(RESULTS)
        ids = [results.new_id() for _ in range(20)]
        broker.publish(*(results.result(task_id, result="x" * 100_000) for task_id in ids))
        daemon = says(url, database.url, "full", "make room on its disk")
        # WHEN there is space, THEN all are stored
        subprocess.run(["mount", "-o", "remount,size=32m", folder], check=True)
        wait_until(lambda: set(database.statuses()) == set(ids), "all rows", 40)
        assert daemon.stop() == 0


# The settings -------------------------------------------------------------------------------


def test_settings(tmp_path: Path, good_database: str) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(f"broker = 'amqp://u:{SECRET}@h//\n")
    unknown = tmp_path / "unknown.toml"
    unknown.write_text("lane = 2\n")
    good = ["--database", good_database, "--broker", f"amqp://{HOST}:1//"]
    for arguments, status, words in [
        (["--listen", f"{HOST}:5672"], 1, f"cannot listen on {HOST}:5672: choose another address"),
        (["--config", tmp_path / "none"], 2, "cannot be read"),
        (["--config", tmp_path], 2, "cannot be read"),
        (["--config", bad], 2, "line 1"),
        (["--config", unknown], 2, "there is no setting `lane`"),
        (["--log-level", "=["], 2, "log-level"),
        (["--nonsense"], 2, "unexpected argument '--nonsense'"),
        (["--broker-file", tmp_path / "none"], 2, "so is broker-file: drop broker"),
    ]:
        done = celeriac("run", *good, *arguments)
        said = done.stderr.decode()
        assert (done.returncode, words in said) == (status, True), said
        assert SECRET not in said
    done = celeriac("run", "--database", f"postgres://u:{SECRET}@h/n?sslmode=wrong")
    said = done.stderr.decode()
    assert done.returncode == 2 and "sslmode" in said.replace("_", "") and SECRET not in said, said
