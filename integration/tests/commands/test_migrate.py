"""`celeriac migrate`: the tables as Django makes them, from every state, and nothing else touched."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from harness import results
from harness.broker import Broker
from harness.catalogs import APP, RECORDS, TABLES, catalog, recorded
from harness.command import celeriac, fail, succeed
from harness.daemon import REPOSITORY, Daemon, binary
from harness.database import TABLE, Database, Databases
from harness.pipeline import Pipeline
from harness.project import Project, clean_environment
from harness.services import MariaDB, PostgreSQL, RabbitMQ, unique_name

#: Django's names, of the newest version.
NAMES = sorted(
    path.stem for path in (REPOSITORY / "migrations" / "sqlite").glob("*.sql")
)

#: What django-celery-results 2.1 made beside the unique indexes, and 2.2 removes.
DUPLICATES = {
    "django_cele_group_i_299b0d_idx": (f"{APP}_chordcounter", "group_id"),
    "django_cele_group_i_3cddec_idx": (f"{APP}_groupresult", "group_id"),
    "django_cele_task_id_7f8fca_idx": (TABLE, "task_id"),
}

NOTHING = "  No migrations to apply.\n"


def migrate(database: Database, *options: str) -> list[str]:
    """The migrations that it says it has dealt with, and how."""
    told = succeed("migrate", "--database", database.url, *options)
    if told == NOTHING:
        return []
    lines = told.splitlines()
    form = re.compile(rf"  Applying {APP}\.(\w+)\.\.\. (OK|FAKED)")
    assert all(form.fullmatch(line) for line in lines), told
    return [" ".join(form.fullmatch(line).groups()) for line in lines]


def done(names: list[str], how: str = "OK") -> list[str]:
    return [f"{name} {how}" for name in names]


@pytest.fixture
def project(python: dict[str, Path]) -> Callable[..., Project]:
    def make(database: Database, environment: str = "celery-5.7", **settings: str) -> Project:
        return Project(python[environment], database.url, "amqp://nobody", settings)

    return make


@pytest.fixture
def copy(
    databases: Databases, postgresql: PostgreSQL, mariadb: MariaDB
) -> Callable[[Database], Database]:
    def make(database: Database) -> Database:
        if database.engine == "sqlite":
            fresh = databases.empty("sqlite")
            shutil.copy(urlsplit(database.url).path[1:], urlsplit(fresh.url).path[1:])
            return fresh
        server = postgresql if database.engine == "postgresql" else mariadb
        return Database(server.copy(database.url))

    return make


@pytest.fixture
def djangos(databases: Databases, engine: str) -> Database:
    """A database that Django has migrated."""
    return databases.migrated(engine)


def insert(database: Database, task_id: str, hidden: bool) -> None:
    """A row with what every version has. `date_done` is its only time."""
    columns = {
        "task_id": f"'{task_id}'",
        "status": "'SUCCESS'",
        "content_type": "'application/json'",
        "content_encoding": "'utf-8'",
        "result": "'42'",
        "date_done": "'2026-03-04 05:06:07.891011'",
    }
    if hidden:
        columns["hidden"] = "'0'" if database.engine != "mariadb" else "0"
    names, values = ", ".join(columns), ", ".join(columns.values())
    database.execute(f"insert into {TABLE} ({names}) values ({values})")


def columns(database: Database) -> set[str]:
    with database.connect() as connection:
        cursor = connection.cursor()
        cursor.execute(f"select * from {TABLE}")
        return {column[0] for column in cursor.description}


def test_fresh_tables_are_djangos(
    engine: str,
    databases: Databases,
    djangos: Database,
    project: Callable[..., Project],
    rabbitmq: RabbitMQ,
    make_daemon: Callable[..., Daemon],
) -> None:
    # GIVEN an empty database
    database = databases.empty(engine)
    # WHEN Celeriac migrates it
    assert migrate(database) == done(NAMES)
    # THEN its catalog is what Django makes, and the second time there is nothing to do
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    assert recorded(database) == NAMES
    assert migrate(database) == []
    # AND Django is content, before and after it has made its own tables
    django = project(database)
    django.manage("migrate", "--check", APP)
    assert "No planned migration operations" in django.manage("migrate", "--plan", APP)
    django.manage("makemigrations", "--check", "--dry-run", APP)
    assert APP not in re.findall(r"Applying (\w+)\.", django.manage("migrate"))
    django.manage("migrate", "--check")
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    query = f"select count(*) from django_content_type where app_label = '{APP}'"
    assert database.query(query) == [(3,)], "Django makes these whatever was to be done"
    # AND the daemon writes to the tables, and Django reads them
    broker = Broker(rabbitmq.create())
    pipeline = Pipeline(broker, database, make_daemon(broker.url, database.url))
    pipeline.daemon.start_consuming()
    task_id = results.new_id()
    broker.publish(results.result(task_id))
    pipeline.wait_for_rows({task_id: "SUCCESS"})
    assert django.rows()[task_id]["async_result"]["result"] == "42"
    pipeline.stop_and_check_queues()


def test_there_is_nothing_to_do_after_django(djangos: Database) -> None:
    before = catalog(djangos, RECORDS), recorded(djangos)
    assert migrate(djangos) == []
    assert (catalog(djangos, RECORDS), recorded(djangos)) == before
    sql = succeed("migrate", "--dry-run", "--database", djangos.url)
    assert sql == "-- There is nothing to do.\n"


def test_every_state_is_completed(
    engine: str,
    databases: Databases,
    djangos: Database,
    project: Callable[..., Project],
    copy: Callable[[Database], Database],
) -> None:
    expected = catalog(djangos)
    walked = databases.empty(engine)
    for number, name in enumerate(NAMES[:-1], 1):
        # GIVEN a database that Django has migrated up to here, with a row from each step
        project(walked).manage("migrate", APP, name, "--verbosity", "0")
        there = columns(walked)
        if "date_created" not in there:
            insert(walked, name, "hidden" in there)
        database = copy(walked)
        if name == "0009_groupresult":
            for index, (table, column) in DUPLICATES.items():
                database.execute(f"create index {index} on {table} ({column})")
        rows = database.rows()
        # WHEN Celeriac migrates it
        # THEN it does the rest, and the end is Django's
        assert migrate(database) == done(NAMES[number:]), name
        assert catalog(database) == expected, name
        assert recorded(database) == NAMES
        # AND every row is there, with what it had
        for task_id, row in database.rows().items():
            old = rows.pop(task_id)
            assert old.pop("hidden", 0) in (0, False)
            assert {column: row[column] for column in old} == old
            assert row["date_created"] == row["date_done"]
        assert not rows
    assert len(database.rows()) >= 5


def test_tables_of_2_0_are_completed(
    engine: str,
    databases: Databases,
    project: Callable[..., Project],
    copy: Callable[[Database], Database],
) -> None:
    # GIVEN the tables of django-celery-results 2.0, made by the Django of its time, and a row in
    # each
    database = databases.empty(engine)
    project(database, "oldest").migrate()
    database.execute(
        f"insert into {TABLE} (task_id, status, content_type, content_encoding, date_done, "
        "date_created) values ('old', 'SUCCESS', 'application/json', 'utf-8', "
        "'2021-03-04 05:06:07', '2021-03-04 05:06:06')"
    )
    database.execute(
        f"insert into {APP}_chordcounter (group_id, sub_tasks, count) values ('g', '[]', 3)"
    )
    by_django = copy(database)
    # WHEN Celeriac migrates one and the Django of today the other
    assert migrate(database) == done(NAMES[8:])
    project(by_django).manage("migrate", APP)
    # THEN they are the same
    assert catalog(database, RECORDS) == catalog(by_django, RECORDS)
    assert database.rows() == by_django.rows()
    chords = f"select group_id, sub_tasks, count from {APP}_chordcounter"
    assert database.query(chords) == by_django.query(chords) == [("g", "[]", 3)]
    project(database).manage("migrate", "--check", APP)


@pytest.mark.parametrize("given", [True, False])
def test_ids_have_the_length_of_the_setting(
    given: bool, engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    # GIVEN a setting, for which Django has made all tables, and some of them
    database, by_django = databases.empty(engine), databases.empty(engine)
    setting = {"DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH": "191"}
    project(by_django, **setting).manage("migrate", APP)
    options = ["--task-id-length", "191"]
    if not given:
        project(database, **setting).manage("migrate", APP, NAMES[7])
        options = []
    # WHEN Celeriac is told of the setting, or sees it in a table
    migrate(database, *options)
    # THEN all ids have that length
    assert catalog(database) == catalog(by_django)
    assert "(191)" in str(catalog(database))


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_project_hands_its_setting_on(
    engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    database = databases.empty(engine)
    django = project(database, DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH="191")
    django.env["CELERIAC_BIN"] = str(binary())
    assert f"Applying {APP}.{NAMES[0]}... OK" in django.manage("celeriac", "migrate")
    assert "varchar(191)" in str(catalog(database))


@pytest.mark.parametrize("number", [0, 8, len(NAMES)])
def test_missing_records_are_made(
    number: int,
    engine: str,
    databases: Databases,
    djangos: Database,
    project: Callable[..., Project],
) -> None:
    # GIVEN tables that a migration has left, and no record of it, or no table of records
    if number == len(NAMES):
        database = databases.migrated(engine)
    else:
        database = databases.empty(engine)
        project(database).manage("migrate", APP, NAMES[number])
    has_records = number != 8
    if has_records:
        database.execute(f"delete from {RECORDS} where app = '{APP}'")
    else:
        database.execute(f"drop table {RECORDS}")
    # WHEN Celeriac migrates
    told = migrate(database)
    # THEN what is there is recorded, and the rest is made
    faked = [name for name in told if name.endswith(" FAKED")]
    assert told == done(NAMES[: len(faked)], "FAKED") + done(NAMES[len(faked) :])
    # Some migrations change nothing, so that they cannot be found.
    assert len(faked) in ((number + 1,) if number < len(NAMES) else (13, 14))
    assert recorded(database) == NAMES
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)


def test_the_dry_run_is_what_is_run(
    engine: str,
    databases: Databases,
    djangos: Database,
    project: Callable[..., Project],
) -> None:
    # GIVEN an empty database, and one that is half migrated
    half = databases.empty(engine)
    project(half).manage("migrate", APP, NAMES[4])
    for database in (databases.empty(engine), half):
        before = catalog(database, RECORDS)
        path = Path(urlsplit(database.url).path[1:])
        existed = path.exists()
        # WHEN Celeriac tells what it would do
        sql = succeed("migrate", "--dry-run", "--database", database.url)
        # THEN it has not done it
        assert engine != "sqlite" or path.exists() == existed
        assert catalog(database, RECORDS) == before
        # AND by hand it leads to the same end
        run_by_hand(database, sql)
        assert catalog(database) == catalog(djangos)
        assert recorded(database) == NAMES
        assert migrate(database) == []


def run_by_hand(database: Database, sql: str) -> None:
    with database.connect() as connection:
        if database.engine == "sqlite":
            connection.executescript(sql)
        elif database.engine == "postgresql":
            connection.execute(sql)
        else:
            for statement in sql.split(";\n")[:-1]:
                connection.cursor().execute(statement)


def test_an_interrupted_migration_is_gone_on_with(
    engine: str, databases: Databases, djangos: Database
) -> None:
    # GIVEN a process that is killed at whatever it does after some migrations
    database = databases.empty(engine)
    for last_words in (f"{NAMES[0]}... OK", f"{NAMES[3]}... OK", f"{NAMES[7]}... OK"):
        process = start(database)
        for line in process.stdout:
            if last_words in line:
                break
        process.kill()
        process.communicate()
    assert "0008_chordcounter" in recorded(database)
    # WHEN another begins
    migrate(database)
    # THEN nothing is missing, and nothing was done twice
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    assert recorded(database) == NAMES


@pytest.mark.parametrize("engine", ["mariadb"])
def test_a_statement_that_was_the_last_one_is_not_repeated(
    databases: Databases, djangos: Callable[..., Database], engine: str
) -> None:
    # GIVEN databases on a server that undoes nothing, left in the middle of the migration with the most statements
    sql = succeed("migrate", "--dry-run", "--database", databases.empty(engine).url)
    statements = sql.split(";\n")[:-1]
    [last] = [number for number, text in enumerate(statements) if "'0008_chordcounter'" in text]
    for more in (1, 2, 6, 7, 13):
        database = databases.empty(engine)
        run_by_hand(database, "".join(f"{text};\n" for text in statements[: last + 1 + more]))
        # WHEN Celeriac migrates
        # THEN it goes on there, also where only the record is missing
        how = ["FAKED" if more == 13 else "OK", *["OK"] * 5]
        assert migrate(database) == [f"{name} {how}" for name, how in zip(NAMES[8:], how)]
        assert catalog(database) == catalog(djangos)
        assert recorded(database) == NAMES


def start(database: Database) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [binary(), "migrate", "--database", database.url],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_at_once_wait_for_each_other(
    engine: str, databases: Databases, djangos: Database
) -> None:
    database = databases.empty(engine)
    processes = [start(database) for _ in range(3)]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    applied = sorted(line for out, _ in told for line in out.splitlines() if "Applying" in line)
    assert applied == [f"  Applying {APP}.{name}... OK" for name in NAMES]
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    assert recorded(database) == NAMES


def refused(database: Database) -> str:
    """What it says of a database that it does not change."""
    before = catalog(database, RECORDS), recorded(database)
    process = celeriac("migrate", "--database", database.url)
    assert process.returncode == 1, process.stdout
    assert (catalog(database, RECORDS), recorded(database)) == before
    return process.stderr.decode()


def test_what_is_not_known_is_left_alone(engine: str, djangos: Database) -> None:
    # A column that is not known, recorded or not
    djangos.execute(f"alter table {TABLE} add column tenant varchar(10)")
    assert "the column tenant is not known" in refused(djangos)
    djangos.execute(f"delete from {RECORDS} where app = '{APP}'")
    assert "the column tenant is not known" in refused(djangos)
    # A later version
    djangos.execute(f"alter table {TABLE} drop column tenant")
    insert_record(djangos, "0015_task_priority")
    assert "0015_task_priority" in refused(djangos)
    # A gap
    djangos.execute(f"delete from {RECORDS} where app = '{APP}'")
    insert_record(djangos, NAMES[1])
    assert f"--fake {APP}" in refused(djangos)


def insert_record(database: Database, name: str) -> None:
    database.execute(
        f"insert into {RECORDS} (app, name, applied) values ('{APP}', '{name}', "
        "'2026-03-04 05:06:07')"
    )


def test_a_type_that_is_not_known_is_left_alone(engine: str, djangos: Database) -> None:
    change = {
        "postgresql": f"alter table {TABLE} alter column result type varchar(10)",
        "mariadb": f"alter table {TABLE} modify column result varchar(10)",
        "sqlite": f"alter table {TABLE} rename column result to outcome",
    }[engine]
    djangos.execute(change)
    words = refused(djangos)
    assert ("result is missing" if engine == "sqlite" else "result is varchar(10)") in words


def test_records_without_tables_are_refused_with_what_to_type(
    engine: str, djangos: Database, project: Callable[..., Project]
) -> None:
    expected = catalog(djangos)
    # GIVEN records of tables that are gone
    for table in TABLES:
        djangos.execute(f"drop table {table}")
    words = refused(djangos)
    # WHEN one types what it says
    [command] = re.findall(r"python manage\.py (migrate --fake .* zero)", words)
    project(djangos).manage(*command.split())
    # THEN the tables are made
    assert migrate(djangos) == done(NAMES)
    assert catalog(djangos) == expected


def test_records_that_are_ahead_are_refused_with_what_to_type(
    engine: str, databases: Databases, djangos: Database, project: Callable[..., Project]
) -> None:
    database = databases.empty(engine)
    project(database).manage("migrate", APP, NAMES[10])
    project(database).manage("migrate", "--fake", APP)
    words = refused(database)
    [command] = re.findall(rf"python manage\.py (migrate --fake {APP} 0011\w*)", words)
    project(database).manage(*command.split())
    assert migrate(database) == done(NAMES[11:])
    assert catalog(database) == catalog(djangos)


def test_a_later_version_is_used_as_it_is(engine: str, djangos: Database) -> None:
    insert_record(djangos, "0015_task_priority")
    djangos.execute(f"alter table {TABLE} add column priority integer")
    told = succeed("migrate", "--database", djangos.url)
    assert "0015_task_priority" in told
    # Unless it needs something that is not known.
    djangos.execute(
        f"alter table {TABLE} add column tenant varchar(10) not null"
        + (" default 'x'" if engine == "sqlite" else "")
    )
    if engine != "sqlite":
        assert "tenant" in refused(djangos)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_what_refers_to_a_table_stays(
    engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    # GIVEN what refers to a table that SQLite has to make anew, and an index that somebody has made
    database = databases.empty(engine)
    project(database).manage("migrate", APP, NAMES[7])
    database.execute(
        f"insert into {TABLE} (id, task_id, status, content_type, content_encoding, date_done, "
        "date_created) values (7, 'old', 'SUCCESS', '', '', '2026-03-04', '2026-03-04')"
    )
    note = f"create table note (task integer references {TABLE} (id) on delete cascade)"
    database.execute(note)
    database.execute("insert into note values (7)")
    database.execute(f"create view finished as select task_id from {TABLE}")
    database.execute(f"create index mine on {TABLE} (meta)")
    # THEN what would be lost is told
    assert "mine on it" in refused(database)
    # WHEN it may be lost
    database.execute("drop index mine")
    migrate(database)
    # THEN the view and the other table are as they were
    assert database.query("select task_id from finished") == [("old",)]
    assert database.query("select task from note") == [(7,)]
    assert database.query("select sql from sqlite_master where name = 'note'") == [
        (note.replace("create table", "CREATE TABLE"),)
    ]
    assert database.query("pragma foreign_key_check") == []


@contextmanager
def user_without_rights(
    database: Database, postgresql: PostgreSQL, mariadb: MariaDB
) -> Iterator[str]:
    """The URL for somebody who may read and write rows, and nothing else."""
    user, name = unique_name(), urlsplit(database.url).path[1:]
    parts = urlsplit(database.url)
    host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    url = urlunsplit(parts._replace(netloc=f"{user}:secret@{host}"))
    if database.engine == "postgresql":
        postgresql.sql(f"create role {user} login password 'secret'")
        for statement in (
            "revoke create on schema public from public",
            f"grant select, insert, update on all tables in schema public to {user}",
            f"grant usage on all sequences in schema public to {user}",
        ):
            database.execute(statement)
        try:
            yield url
        finally:
            database.execute(f"drop owned by {user}")
            postgresql.sql(f"drop role {user}")
    else:
        mariadb.sql(f"create user {user} identified by 'secret'")
        mariadb.sql(f"grant select, insert, update on {name}.* to {user}")
        try:
            yield url
        finally:
            mariadb.sql(f"drop user {user}")


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_a_missing_right_is_named(
    engine: str,
    databases: Databases,
    project: Callable[..., Project],
    postgresql: PostgreSQL,
    mariadb: MariaDB,
) -> None:
    half = databases.empty(engine)
    project(half).manage("migrate", APP, NAMES[10])
    alter = {"postgresql": "to be the owner of the table", "mariadb": "the right ALTER"}[engine]
    for database, right, statement in [
        (databases.empty(engine), "the right CREATE", "CREATE TABLE"),
        (half, alter, "ALTER TABLE"),
    ]:
        with user_without_rights(database, postgresql, mariadb) as url:
            words = fail("migrate", "--database", url)
        assert f"this user needs {right}" in words
        assert f"the statement was: {statement}" in words
        assert "secret" not in words


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    for options in [
        ["--database", "nowhere"],
        ["--database", f"sqlite:///{tmp_path}/db", "--task-id-length", "0"],
    ]:
        process = celeriac("migrate", *options)
        assert process.returncode == 2, process.stderr
    assert celeriac("migrate", "--database", f"sqlite:///{tmp_path}/none/db").returncode == 1
    assert not list(tmp_path.iterdir())
