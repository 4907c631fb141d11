"""`celeriac check` finds problems and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import psycopg
import pytest

from harness import results
from harness.broker import DEAD, EXCHANGE, QUEUES, RESULTS, Broker, Message
from harness.command import celeriac, succeed
from harness.daemon import Daemon
from harness.database import TABLE, Database, Databases
from harness.pipeline import Pipeline
from harness.services import MariaDB, PostgreSQL, RabbitMQ, free_port, unique_name
from harness.users import another_user


class Check:
    """The findings of one run."""

    def __init__(self, *arguments: object) -> None:
        done = celeriac("check", "--json", *arguments)
        assert not done.stderr, done.stderr.decode()
        self.status = done.returncode
        self.findings = [json.loads(line) for line in done.stdout.decode().splitlines()]

    def of(self, level: str, subject: str = "") -> list[dict[str, str]]:
        return [
            finding
            for finding in self.findings
            if finding["level"] == level and finding["subject"] in (subject or finding["subject"])
        ]

    def only(self, level: str, subject: str) -> str:
        """The text and the fix of the only finding that is not `ok`."""
        found = self.of("warning") + self.of("error")
        assert len(found) == 1, found
        assert (found[0]["level"], found[0]["subject"]) == (level, subject), found
        assert self.status == (level == "error")
        return f"{found[0]['text']} → {found[0].get('fix', '')}"

    def says(self, text: str) -> bool:
        return any(text in finding["text"] for finding in self.findings)


@pytest.fixture
def broker(rabbitmq: RabbitMQ) -> Broker:
    return Broker(rabbitmq.create())


def of(broker: Broker, database: Database, *options: object) -> Check:
    return Check("--broker", broker.url, "--database", database.url, *options)


#: On MariaDB, Django's tables have a collation that ignores case.
EXPECTED = {"postgresql": [], "mariadb": ["task_id"], "sqlite": []}


def expected(engine: str, check: Check) -> None:
    """Expects only the findings that every database of this kind has."""
    assert check.of("error") == []
    warnings = check.of("warning")
    assert len(warnings) == len(EXPECTED[engine])
    for warning, word in zip(warnings, EXPECTED[engine], strict=True):
        assert word in warning["text"]
        assert "utf8mb4_bin" in warning["fix"]
    assert check.status == 0


def test_a_good_setup_has_no_findings_and_is_not_changed(
    broker: Broker, databases: Databases, engine: str
) -> None:
    database = databases.migrated(engine)
    check = of(broker, database, "--events", "--listen", f"127.0.0.1:{free_port()}")
    expected(engine, check)
    assert check.says("is free to listen on")
    assert check.says("the queue celeriac.events (events) is not there yet")
    assert check.says("a message went through a private queue")
    assert check.says("written to django_celery_results_taskresult, changed and undone")
    for queue in QUEUES:
        assert not broker.exists(queue)
    assert database.count() == 0
    if engine == "sqlite":
        assert database.query("pragma journal_mode") == [("delete",)]
        assert check.says("`celeriac run` switches it to WAL mode")


def test_a_running_daemon_is_not_affected(
    own_pipeline: Pipeline, engine: str, make_daemon: Callable[..., Daemon]
) -> None:
    own_pipeline.daemon.start_consuming()
    own_pipeline.broker.publish(results.result("before"))
    own_pipeline.wait_for_rows({"before": "SUCCESS"})
    check = of(own_pipeline.broker, own_pipeline.database)
    expected(engine, check)
    assert check.says(f"the queue {RESULTS} (results): 0 messages wait, 1 consumers")
    assert check.says(f"the exchange {EXCHANGE} is there")
    own_pipeline.broker.publish(results.result("after"))
    own_pipeline.wait_for_rows({"after": "SUCCESS"})
    assert own_pipeline.database.count() == 2
    assert own_pipeline.daemon.output().count('"message":"consuming"') == 1


def test_the_text_output_has_a_line_per_finding_and_a_summary(
    broker: Broker, databases: Databases
) -> None:
    database = databases.migrated("postgresql")
    arguments = "check", "--broker", broker.url, "--database", database.url
    done = celeriac(*arguments)
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, lines[-1]) == (0, "all is well")
    assert lines[0].startswith("ok       broker    connected to amqp://guest:***@")

    broker.declare(DEAD)
    broker.publish(Message(b"x"), queue=DEAD)
    done = celeriac(*arguments)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0
    assert lines[-1] == "`celeriac run` works; warnings: 1"
    at = next(number for number, line in enumerate(lines) if line.startswith("warning  broker"))
    assert "1 messages could not be stored" in lines[at]
    assert lines[at + 1].strip() == "→ `celeriac dead list` shows why"
    assert celeriac(*arguments, "--strict").returncode == 1
    assert broker.depth(DEAD) == 1


# The broker -------------------------------------------------------------------------------------


def other(url: str, **parts: str) -> str:
    """Replaces the `user`, `password`, `host` or `vhost` of the URL."""
    old = urlsplit(url)
    user = parts.get("user", old.username)
    password = parts.get("password", old.password)
    host = parts.get("host", f"{old.hostname}:{old.port}")
    return f"amqp://{user}:{password}@{host}/{parts.get('vhost', old.path[1:])}"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"password": "s3cret"}, "ACCESS_REFUSED"),
        ({"vhost": "nowhere"}, "nowhere"),
        ({"host": "127.0.0.1:1"}, "refused"),
        ({"host": "nowhere.invalid"}, "nowhere.invalid"),
    ],
    ids=["password", "vhost", "port", "host"],
)
def test_the_broker_refuses_the_connection(
    broker: Broker, databases: Databases, parts: dict[str, str], words: str
) -> None:
    database = databases.migrated("sqlite")
    url = other(broker.url, **parts)
    check = Check("--broker", url, "--database", database.url)
    told = check.only("error", "broker")
    assert words.lower() in told.lower()
    assert "s3cret" not in told
    assert check.says("changed and undone"), "the database is checked too"

    check = Check("--broker", f"{url};{broker.url}", "--database", database.url)
    assert words.lower() in check.only("warning", "broker").lower()


def test_a_queue_with_other_arguments(broker: Broker, databases: Databases) -> None:
    broker.declare(RESULTS, {"x-queue-type": "classic"})
    broker.publish(results.result("waits"))
    check = of(broker, databases.migrated("sqlite"))
    told = check.only("warning", "broker")
    for word in ("x-queue-type", "x-overflow", "rabbitmqctl delete_queue", "--if-empty"):
        assert word in told
    assert check.says(f"the queue {RESULTS} (results): 1 messages wait, 0 consumers")
    assert broker.depth(RESULTS) == 1


#: All permissions that the daemon needs.
CONFIGURE = r"^celeriac(\..+)?$"
WRITE = r"^(celeriac\..+|amq\.default)$"
READ = r"^celeriac(\..+)?$"


@pytest.mark.parametrize(
    ("rights", "level", "words"),
    [
        ((CONFIGURE, WRITE, READ), None, ""),
        ((CONFIGURE, r"^celeriac\..+$", READ), "error", "no dead letter could be written"),
        (
            (r"^celeriac(\.results|\.dead)?$", WRITE, READ),
            "warning",
            "no message could be tried",
        ),
    ],
    ids=["enough", "no dead letters", "no private queue"],
)
def test_missing_permissions_are_found_with_a_private_queue(
    rabbitmq: RabbitMQ,
    broker: Broker,
    databases: Databases,
    rights: tuple[str, str, str],
    level: str | None,
    words: str,
) -> None:
    with another_user(rabbitmq, broker, *rights) as limited:
        check = of(Broker(limited), databases.migrated("sqlite"))
    found = [one for one in check.findings if one["level"] != "ok"]
    assert [one["level"] for one in found] == ([level] if level else []), found
    assert all(words in one["text"] and "set_permissions" in one["fix"] for one in found), found
    assert check.status == (level == "error")


# The database -----------------------------------------------------------------------------------


def test_no_tables(broker: Broker, databases: Databases, engine: str) -> None:
    database = databases.empty(engine)
    told = of(broker, database).only("error", "database")
    assert "manage.py migrate django_celery_results" in told
    assert "celeriac migrate" in told
    if engine == "sqlite":
        database.execute("create table other (id integer)")
        assert "does not exist" in of(broker, database).only("error", "database")


def test_a_column_that_is_missing(broker: Broker, databases: Databases) -> None:
    database = databases.migrated("postgresql")
    database.execute(f"alter table {TABLE} drop column date_started")
    check = of(broker, database)
    assert check.status == 0
    texts = [finding["text"] for finding in check.of("warning", "database")]
    assert len(texts) == 2
    assert "lacks date_started" in texts[0]
    assert "the column date_started is missing" in texts[1]
    database.execute(f"alter table {TABLE} drop column worker")
    assert "no column worker" in of(broker, database).only("error", "database")


def test_the_table_of_groups_is_missing(broker: Broker, databases: Databases) -> None:
    database = databases.migrated("postgresql")
    database.execute("drop table django_celery_results_groupresult")
    check = of(broker, database)
    assert check.status == 0
    texts = [finding["text"] for finding in check.of("warning", "database")]
    assert "groups become dead letters" in texts[0]


def test_the_tables_for_chords_are_missing(
    broker: Broker, databases: Databases, engine: str
) -> None:
    database = databases.migrated(engine)
    assert of(broker, database).says("the migrations of celeriac are all applied")

    def warning(words: str) -> dict[str, str]:
        check = of(broker, database)
        assert check.status == 0
        [found] = [one for one in check.of("warning", "database") if words in one["text"]]
        return found

    # They were dropped, or their creation was left to another database, and are recorded.
    for table in ("celeriac_chord", "celeriac_chordmember"):
        database.execute(f"drop table {table}")
    found = warning("chords are completed by Celery's own polling")
    assert "Django's router" in found["text"]
    assert "python manage.py migrate --fake celeriac zero" in found["text"]
    # They have never been created.
    database.execute("delete from django_migrations where app = 'celeriac'")
    found = warning("chords are completed by Celery's own polling")
    for words in ("python manage.py migrate celeriac", "celeriac migrate", "Django's router"):
        assert words in found["fix"]
    # They are there and not recorded.
    succeed("migrate", "--database", database.url)
    database.execute("delete from django_migrations where app = 'celeriac'")
    found = warning("the tables of celeriac exist")
    assert "lacks 0001_initial" in found["text"]
    succeed("migrate", "--database", database.url)
    expected(engine, of(broker, database))


def test_migrations_that_are_not_applied_or_not_recorded(
    broker: Broker, databases: Databases, engine: str
) -> None:
    database = databases.migrated(engine)
    newest = "0014_alter_taskresult_status"
    assert of(broker, database).says("are all applied")
    database.execute(
        "insert into django_migrations (app, name, applied) "
        "values ('django_celery_results', '0099_later', '2030-01-01 00:00:00')"
    )
    told = [one["text"] for one in of(broker, database).of("warning", "database")]
    assert "0099_later" in told[0]
    database.execute("delete from django_migrations where name = '0099_later'")

    names = database.query(
        "select name from django_migrations where app = 'django_celery_results' order by name"
    )
    assert names[-1] == (newest,)
    database.execute("delete from django_migrations where app = 'django_celery_results'")
    told = [one["text"] for one in of(broker, database).of("warning", "database")]
    assert "django_migrations does not say so" in told[0]
    assert "0001_initial" in told[0]


def test_the_server_cannot_be_used(
    broker: Broker, databases: Databases, postgresql: PostgreSQL, mariadb: MariaDB
) -> None:
    for url, word in [
        ("postgres://postgres@127.0.0.1:1/x", "refused"),
        (databases.migrated("postgresql").url + "nowhere", "does not exist"),
        (databases.migrated("mariadb").url + "nowhere", "Unknown database"),
        ("sqlite:////nowhere/at/all.sqlite3", "there is no file /nowhere/at/all.sqlite3"),
    ]:
        told = Check("--broker", broker.url, "--database", url).only("error", "database")
        assert word in told


@contextmanager
def role(database: Database, *grants: str) -> Iterator[Database]:
    """The URL of a PostgreSQL role with these privileges."""
    name = unique_name()
    with database.connect() as connection:
        connection.execute(f"create role {name} login password 'password'")
        for grant in grants:
            connection.execute(f"grant {grant} to {name}")
        try:
            parts = urlsplit(database.url)
            yield Database(
                f"postgres://{name}:password@{parts.hostname}:{parts.port or 5432}{parts.path}"
            )
        finally:
            connection.execute(f"drop owned by {name}")
            connection.execute(f"drop role {name}")


def test_rights_in_postgresql(broker: Broker, databases: Databases) -> None:
    database = databases.migrated("postgresql")
    all_rights = [
        f"select, insert, update on {TABLE}",
        "select, insert, update on django_celery_results_groupresult",
        "select on django_migrations",
    ]
    with role(database, *all_rights) as limited:
        assert of(broker, limited).findings[-1]["level"] == "ok"
    for lacking in ("select", "insert", "update"):
        rights = {"select", "insert", "update"} - {lacking}
        grant = f"{', '.join(sorted(rights))} on {TABLE}"
        with role(database, grant, *all_rights[1:]) as limited:
            check = of(broker, limited)
        told = check.only("error", "message")
        assert "permission denied" in told, lacking
        assert database.count() == 0
    with role(database, *all_rights) as limited:
        told = of(broker, limited, "--cleanup-every", "1day").only("warning", "message")
        assert "--cleanup-every cannot delete expired rows: permission denied" in told
    with role(database, *all_rights, f"delete on {TABLE}") as limited:
        assert of(broker, limited, "--cleanup-every", "1day").says("its row could be deleted")
    assert database.count() == 0


def test_postgresql_settings_that_lose_or_refuse_rows(broker: Broker, databases: Databases) -> None:
    database = databases.migrated("postgresql")
    rights = [
        f"select, insert, update on {TABLE}",
        "select on django_migrations",
    ]
    with role(database, *rights) as limited:
        name = urlsplit(limited.url).username
        database.execute(f"alter role {name} set synchronous_commit = off")
        told = of(broker, limited).only("warning", "database")
        assert "synchronous_commit is off" in told
        database.execute(f"alter role {name} set default_transaction_read_only = on")
        database.execute(f"alter role {name} reset synchronous_commit")
        assert "read-only" in of(broker, limited).only("error", "message")


def test_another_encoding(broker: Broker, databases: Databases, postgresql: PostgreSQL) -> None:
    name = unique_name()
    with psycopg.connect(postgresql.url, autocommit=True) as server:
        server.execute(
            f"create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' "
            "template template0"
        )
        try:
            parts = urlsplit(postgresql.url)
            database = Database(parts._replace(path=f"/{name}").geturl())
            databases.migrate(database)
            assert "LATIN1" in of(broker, database).only("warning", "database")
        finally:
            server.execute(f"drop database {name} with (force)")


def test_tables_of_mariadb(broker: Broker, databases: Databases) -> None:
    database = databases.migrated("mariadb")
    database.execute(
        f"alter table {TABLE} modify task_id varchar(255) character set utf8mb4 "
        "collate utf8mb4_bin not null"
    )
    assert of(broker, database).status == 0
    assert of(broker, database).of("warning") == []
    database.execute(f"alter table {TABLE} modify result longtext character set utf8mb3 null")
    told = of(broker, database).only("warning", "database")
    assert "the character set of result is not utf8mb4" in told
    database.execute(f"alter table {TABLE} modify result longtext character set utf8mb4 null")
    database.execute(f"alter table {TABLE} engine = MyISAM")
    assert "engine = InnoDB" in of(broker, database).only("warning", "message")
    assert database.count() == 0


@pytest.mark.parametrize("engine", ["mariadb", "sqlite"])
def test_rows_of_another_time_zone(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon], engine: str
) -> None:
    """A daemon whose time zone is set to Tokyo."""
    broker, database = own_pipeline.broker, own_pipeline.database
    daemon = make_daemon(broker.url, database.url, "--time-zone", "Asia/Tokyo")
    daemon.start_consuming()
    broker.publish(results.result("ahead", date_done=datetime.now(UTC).isoformat()))
    own_pipeline.daemon = daemon
    own_pipeline.wait_for_rows({"ahead": "SUCCESS"})
    told = " ".join(finding["text"] for finding in of(broker, database).of("warning"))
    assert "the time of the newest row is 5" in told
    assert "minutes in the future" in told
    check = of(broker, database, "--time-zone", "Asia/Tokyo")
    assert not check.says("minutes in the future")


def test_settings(broker: Broker, databases: Databases) -> None:
    database = databases.migrated("sqlite")
    url = f"{broker.url}?colour=blue"
    told = Check("--broker", url, "--database", database.url).only("warning", "settings")
    assert "colour" in told
    told = of(broker, database, "--listen", "192.0.2.1:9180").only("error", "settings")
    assert "192.0.2.1:9180" in told
    taken = urlsplit(broker.url).port or 5672
    told = of(broker, database, "--listen", f"127.0.0.1:{taken}").only("warning", "settings")
    assert "is in use" in told
    wrong = celeriac("check", "--lanes", "0")
    assert (wrong.returncode, b"lanes" in wrong.stderr) == (2, True)
