"""`celeriac migrate` creates the tables as Django does, and never changes existing ones."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harness import results
from harness.broker import Broker
from harness.catalogs import APP, RECORDS, TABLES, catalog, recorded
from harness.command import celeriac, fail, succeed
from harness.daemon import Daemon, binary
from harness.database import TABLE, Database, Databases
from harness.pipeline import Pipeline
from harness.project import Project, clean_environment
from harness.services import MariaDB, PostgreSQL, RabbitMQ
from harness.users import user_without_rights

MADE = "The tables of django-celery-results 2.6 were made and their migrations recorded.\n"
RECORDED = "The tables were there, and their migrations were recorded.\n"
NOTHING = "The tables are there already: nothing was changed.\n"


def migrate(database: Database, *options: str) -> str:
    """Runs the command and returns its output."""
    return succeed("migrate", "--database", database.url, *options)


@pytest.fixture
def project(python: dict[str, Path]) -> Callable[..., Project]:
    def make(database: Database, environment: str = "celery-5.7", **settings: str) -> Project:
        return Project(python[environment], database.url, "amqp://nobody", settings)

    return make


@pytest.fixture
def djangos(databases: Databases, engine: str) -> Database:
    """A database migrated by Django."""
    return databases.migrated(engine)


def test_new_tables_are_the_same_as_djangos(
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
    assert migrate(database) == MADE
    # THEN the catalog is the same as Django's, and the second run has nothing to do
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    assert recorded(database) == recorded(djangos)
    assert migrate(database) == NOTHING
    assert recorded(database) == recorded(djangos)
    # AND Django finds nothing to do, before and after it has created its own tables
    django = project(database)
    django.manage("migrate", "--check", APP)
    assert "No planned migration operations" in django.manage("migrate", "--plan", APP)
    django.manage("makemigrations", "--check", "--dry-run", APP)
    assert APP not in re.findall(r"Applying (\w+)\.", django.manage("migrate"))
    django.manage("migrate", "--check")
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    query = f"select count(*) from django_content_type where app_label = '{APP}'"
    assert database.query(query) == [(3,)], "Django always creates these"
    # AND the daemon writes to the tables, and Django reads from them
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
    assert migrate(djangos) == NOTHING
    assert (catalog(djangos, RECORDS), recorded(djangos)) == before
    sql = succeed("migrate", "--dry-run", "--database", djangos.url)
    assert sql == "-- There is nothing to do.\n"


def refused(database: Database) -> str:
    """Runs the command on a database that it must refuse, and returns the error."""
    before = catalog(database, RECORDS), recorded(database)
    process = celeriac("migrate", "--database", database.url)
    assert process.returncode == 1, process.stdout
    assert (catalog(database, RECORDS), recorded(database)) == before
    return process.stderr.decode()


@pytest.mark.parametrize(
    ("migration", "words"),
    [
        ("0001_initial", "does not record 0002"),
        ("0008_chordcounter", f"the table {APP}_groupresult is missing"),
        ("0011", "does not record 0012_taskresult_date_started"),
        ("0013", "does not record 0014_alter_taskresult_status"),
    ],
)
def test_older_tables_are_left_to_django(
    migration: str,
    words: str,
    engine: str,
    databases: Databases,
    djangos: Database,
    project: Callable[..., Project],
) -> None:
    # GIVEN the tables of an earlier migration
    database = databases.empty(engine)
    project(database).manage("migrate", APP, migration)
    # WHEN Celeriac migrates
    told = refused(database)
    # THEN they are unchanged, and the suggested command completes them
    assert words in told
    [command] = re.findall(r"run `python manage\.py (.*)`", told)
    project(database).manage(*command.split())
    assert recorded(database) == recorded(djangos)
    assert migrate(database) == NOTHING


def test_tables_of_2_0_are_left_to_django(
    engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    database = databases.empty(engine)
    project(database, "oldest").migrate()
    assert f"run `python manage.py migrate {APP}`" in refused(database)


def test_ids_have_the_length_of_the_setting(
    engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    # GIVEN tables that Django has created with a setting
    database, by_django = databases.empty(engine), databases.empty(engine)
    project(by_django, DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH="191").manage("migrate", APP)
    # WHEN Celeriac migrates with the same setting
    assert migrate(database, "--task-id-length", "191") == MADE
    # THEN all ids have that length, which later runs accept without the setting
    assert catalog(database) == catalog(by_django)
    assert "(191)" in str(catalog(database))
    assert migrate(database) == migrate(by_django) == NOTHING


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_project_passes_its_setting_on(
    engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    database = databases.empty(engine)
    django = project(database, DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH="191")
    django.env["CELERIAC_BIN"] = str(binary())
    assert MADE in django.manage("celeriac", "migrate")
    assert "varchar(191)" in str(catalog(database))


@pytest.mark.parametrize("has_records", [True, False])
def test_missing_records_are_added(
    has_records: bool, djangos: Database, project: Callable[..., Project]
) -> None:
    # GIVEN the newest tables without their records, or without the table of records
    before = catalog(djangos), recorded(djangos)
    if has_records:
        djangos.execute(f"delete from {RECORDS} where app = '{APP}'")
    else:
        djangos.execute(f"drop table {RECORDS}")
    # WHEN Celeriac migrates
    assert migrate(djangos) == RECORDED
    # THEN the migrations are recorded, and the tables are unchanged
    assert (catalog(djangos), recorded(djangos)) == before
    assert migrate(djangos) == NOTHING


def test_the_dry_run_prints_what_is_run(
    engine: str, databases: Databases, djangos: Database
) -> None:
    database = databases.empty(engine)
    before = catalog(database, RECORDS)
    path = Path(urlsplit(database.url).path[1:])
    existed = path.exists()
    # WHEN it is a dry run
    sql = succeed("migrate", "--dry-run", "--database", database.url)
    # THEN nothing changes
    assert engine != "sqlite" or path.exists() == existed
    assert catalog(database, RECORDS) == before
    # AND its SQL, run by hand, has the same result
    run_by_hand(database, sql)
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    assert recorded(database) == recorded(djangos)
    assert migrate(database) == NOTHING


def run_by_hand(database: Database, sql: str) -> None:
    with database.connect() as connection:
        if database.engine == "sqlite":
            connection.executescript(sql)
        elif database.engine == "postgresql":
            connection.execute(sql)
        else:
            for statement in sql.split(";\n")[:-1]:
                connection.cursor().execute(statement)


def start(database: Database) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [binary(), "migrate", "--database", database.url],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_does_not_block_the_next(
    engine: str, databases: Databases, djangos: Database
) -> None:
    # GIVEN processes that are killed at different points
    database = databases.empty(engine)
    for number in range(8):
        process = start(database)
        time.sleep(0.01 * number)
        process.kill()
        process.communicate()
    # WHEN another one runs
    migrate(database)
    # THEN everything is there exactly once
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    assert recorded(database) == recorded(djangos)


@pytest.mark.parametrize("engine", ["mariadb"])
def test_an_interrupted_migration_is_completed(
    engine: str, databases: Databases, djangos: Database
) -> None:
    # GIVEN a server that does not roll back DDL, stopped after each of the statements
    sql = succeed("migrate", "--dry-run", "--database", databases.empty(engine).url)
    statements = [f"{text};\n" for text in sql.split(";\n")[:-1]]
    [named] = [place for place, text in enumerate(statements) if text.startswith("RENAME")]
    for count in range(1, len(statements)):
        database = databases.empty(engine)
        run_by_hand(database, "".join(statements[:count]))
        # WHEN Celeriac migrates
        # THEN it starts again, or records the tables that exist
        assert migrate(database) == (RECORDED if count > named else MADE), count
        assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
        assert recorded(database) == recorded(djangos)
        assert not [name for (name,) in database.query("show tables") if name.endswith("_new")]


def test_two_at_once_wait_for_each_other(
    engine: str, databases: Databases, djangos: Database
) -> None:
    database = databases.empty(engine)
    processes = [start(database) for _ in range(3)]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    assert sorted(out for out, _ in told) == sorted([MADE, NOTHING, NOTHING])
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    assert recorded(database) == recorded(djangos)


def test_unknown_columns_and_records_are_left_alone(engine: str, djangos: Database) -> None:
    # An unknown column, recorded or not
    djangos.execute(f"alter table {TABLE} add column tenant varchar(10)")
    assert "the column tenant is not known" in refused(djangos)
    djangos.execute(f"delete from {RECORDS} where app = '{APP}'")
    assert "the column tenant is not known" in refused(djangos)
    # Only records of a later version
    djangos.execute(f"alter table {TABLE} drop column tenant")
    insert_record(djangos, "0015_task_priority")
    assert "does not record 0001_initial" in refused(djangos)
    # A gap in the records
    djangos.execute(f"delete from {RECORDS} where app = '{APP}'")
    insert_record(djangos, "0002_add_task_name_args_kwargs")
    assert "does not record 0001_initial" in refused(djangos)


def insert_record(database: Database, name: str) -> None:
    database.execute(
        f"insert into {RECORDS} (app, name, applied) values ('{APP}', '{name}', "
        "'2026-03-04 05:06:07')"
    )


def test_a_column_that_differs_is_left_alone(engine: str, djangos: Database) -> None:
    change = {
        "postgresql": f"alter table {TABLE} alter column result type varchar(10)",
        "mariadb": f"alter table {TABLE} modify column result varchar(10)",
        "sqlite": f"alter table {TABLE} rename column result to outcome",
    }[engine]
    djangos.execute(change)
    words = refused(djangos)
    assert ("result is missing" if engine == "sqlite" else "result takes 10 characters") in words


def test_tables_that_are_partly_there_are_left_alone(djangos: Database) -> None:
    djangos.execute(f"drop table {APP}_chordcounter")
    assert f"the table {APP}_chordcounter is missing" in refused(djangos)
    djangos.execute(f"delete from {RECORDS} where app = '{APP}'")
    assert f"the table {APP}_chordcounter is missing" in refused(djangos)


def test_records_without_tables_are_refused_with_a_fix(
    engine: str, djangos: Database, project: Callable[..., Project]
) -> None:
    expected = catalog(djangos)
    # GIVEN records of tables that were dropped
    for table in TABLES:
        djangos.execute(f"drop table {table}")
    words = refused(djangos)
    # WHEN the suggested command is run
    [command] = re.findall(r"python manage\.py (migrate --fake .* zero)", words)
    project(djangos).manage(*command.split())
    # THEN the tables are created
    assert migrate(djangos) == MADE
    assert catalog(djangos) == expected


def test_records_of_missing_changes_are_refused_with_a_fix(
    engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    database = databases.empty(engine)
    project(database).manage("migrate", APP, "0011")
    project(database).manage("migrate", "--fake", APP)
    words = refused(database)
    assert "the column date_started is missing" in words
    [fake] = re.findall(rf"python manage\.py (migrate --fake {APP} NAME)", words)
    project(database).manage(*fake.replace("NAME", "0011").split())
    project(database).manage("migrate", APP)
    assert migrate(database) == NOTHING


def test_a_later_version_is_used_as_it_is(engine: str, djangos: Database) -> None:
    insert_record(djangos, "0015_task_priority")
    djangos.execute(f"alter table {TABLE} add column priority integer")
    told = succeed("migrate", "--database", djangos.url)
    assert "0015_task_priority" in told
    # Unless it has a required column that is unknown.
    djangos.execute(
        f"alter table {TABLE} add column tenant varchar(10) not null"
        + (" default 'x'" if engine == "sqlite" else "")
    )
    if engine != "sqlite":
        assert "tenant" in refused(djangos)


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_a_missing_permission_is_named(
    engine: str,
    databases: Databases,
    postgresql: PostgreSQL,
    mariadb: MariaDB,
) -> None:
    right = {"postgresql": "the right CREATE", "mariadb": "the rights CREATE, DROP"}[engine]
    with user_without_rights(databases.empty(engine), postgresql, mariadb) as url:
        words = fail("migrate", "--database", url)
    assert f"this user needs {right}" in words
    assert "the statement was: CREATE TABLE" in words
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
