"""`celeriac migrate` creates the tables as Django does, and never changes existing ones.

They are those of two apps, django-celery-results and Celeriac itself.
"""

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
from harness.catalogs import (
    APP,
    CHORD_TABLES,
    CHORDS_APP,
    RECORDS,
    TABLES,
    catalog,
    recorded,
)
from harness.command import celeriac, fail, succeed
from harness.daemon import Daemon, binary
from harness.database import TABLE, Database, Databases
from harness.pipeline import Pipeline
from harness.project import Project, clean_environment
from harness.services import MariaDB, PostgreSQL, RabbitMQ
from harness.users import user_without_rights

#: What is said about the tables of one app.
ARE_MADE = "were made and their migrations recorded."
ARE_RECORDED = "were there, and their migrations were recorded."
ARE_THERE = "are there already: nothing was changed."


def told(results: str, chords: str) -> str:
    """The output of the command."""
    packages = {"django-celery-results 2.6": results, "Celeriac": chords}
    return "".join(f"The tables of {name} {words}\n" for name, words in packages.items())


MADE = told(ARE_MADE, ARE_MADE)
NOTHING = told(ARE_THERE, ARE_THERE)


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
    for app in (APP, CHORDS_APP):
        django.manage("migrate", "--check", app)
        assert "No planned migration operations" in django.manage("migrate", "--plan", app)
        django.manage("makemigrations", "--check", "--dry-run", app)
    assert not {APP, CHORDS_APP} & {*re.findall(r"Applying (\w+)\.", django.manage("migrate"))}
    django.manage("migrate", "--check")
    assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
    for app, count in ((APP, 3), (CHORDS_APP, 2)):
        query = f"select count(*) from django_content_type where app_label = '{app}'"
        assert database.query(query) == [(count,)], "Django always creates these"
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
    problem = refused(database)
    # THEN they are unchanged, and the suggested command completes them
    assert words in problem
    [command] = re.findall(r"run `python manage\.py (.*)`", problem)
    project(database).manage(*command.split())
    assert migrate(database) == told(ARE_THERE, ARE_MADE)
    assert recorded(database) == recorded(djangos)
    assert migrate(database) == NOTHING


def test_tables_of_2_0_are_left_to_django(
    engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    database = databases.empty(engine)
    project(database, "oldest").migrate()
    assert f"run `python manage.py migrate {APP}`" in refused(database)


def test_tables_for_chords_of_an_older_django_are_accepted(
    engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    # GIVEN tables that Django 3.2 has created, with a sequence instead of an identity column
    database = databases.empty(engine)
    old = project(database, "oldest")
    old.manage("makemigrations", "--check", "--dry-run", CHORDS_APP)
    old.manage("migrate", CHORDS_APP)
    # WHEN Celeriac migrates, THEN it uses them
    assert migrate(database) == told(ARE_MADE, ARE_THERE)


def test_ids_have_the_length_of_the_setting(
    engine: str, databases: Databases, project: Callable[..., Project]
) -> None:
    # GIVEN tables that Django has created with a setting
    database, by_django = databases.empty(engine), databases.empty(engine)
    project(by_django, DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH="191").migrate()
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


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (f"delete from {RECORDS} where app = '{APP}'", (ARE_RECORDED, ARE_THERE)),
        (f"delete from {RECORDS} where app = '{CHORDS_APP}'", (ARE_THERE, ARE_RECORDED)),
        (f"drop table {RECORDS}", (ARE_RECORDED, ARE_RECORDED)),
    ],
    ids=["results", "chords", "all"],
)
def test_missing_records_are_added(lost: str, words: tuple[str, str], djangos: Database) -> None:
    # GIVEN the newest tables without their records, or without the table of records
    before = catalog(djangos), recorded(djangos)
    djangos.execute(lost)
    # WHEN Celeriac migrates
    assert migrate(djangos) == told(*words)
    # THEN the migrations are recorded, and the tables are unchanged
    assert (catalog(djangos), recorded(djangos)) == before
    assert migrate(djangos) == NOTHING


def drop_chord_tables(database: Database) -> None:
    """Leaves the database as an installation of Celeriac 0.1 has it."""
    for table in CHORD_TABLES:
        database.execute(f"drop table {table}")
    database.execute(f"delete from {RECORDS} where app = '{CHORDS_APP}'")


def test_only_the_tables_for_chords_are_created_beside_those_of_results(
    djangos: Database, project: Callable[..., Project]
) -> None:
    # GIVEN a database with the newest tables of django-celery-results and none of Celeriac
    expected = catalog(djangos, RECORDS), recorded(djangos)
    drop_chord_tables(djangos)
    sql = succeed("migrate", "--dry-run", "--database", djangos.url)
    assert APP not in sql
    # WHEN Celeriac migrates
    assert migrate(djangos) == told(ARE_THERE, ARE_MADE)
    # THEN its tables are there and recorded, as by Django, and the others are unchanged
    assert (catalog(djangos, RECORDS), recorded(djangos)) == expected
    project(djangos).manage("migrate", "--check")
    assert migrate(djangos) == NOTHING
    # AND what the dry run printed has the same result
    drop_chord_tables(djangos)
    run_by_hand(djangos, sql)
    assert (catalog(djangos, RECORDS), recorded(djangos)) == expected


def test_tables_for_chords_that_differ_are_left_alone(
    djangos: Database, project: Callable[..., Project]
) -> None:
    expected = catalog(djangos)
    # A table is missing, with and without the record.
    djangos.execute("drop table celeriac_chordmember")
    assert "the table celeriac_chordmember is missing" in refused(djangos)
    djangos.execute(f"delete from {RECORDS} where app = '{CHORDS_APP}'")
    assert "run `python manage.py migrate celeriac`" in refused(djangos)
    # Both are missing and recorded: Django records migrations also in a database in which its
    # router does not let it create the tables.
    djangos.execute("drop table celeriac_chord")
    insert_record(djangos, "0001_initial", CHORDS_APP)
    words = refused(djangos)
    assert "If Django's router gives celeriac another database" in words
    [command] = re.findall(r"python manage\.py (migrate --fake .* zero)", words)
    project(djangos).manage(*command.split())
    assert migrate(djangos) == told(ARE_THERE, ARE_MADE)
    assert catalog(djangos) == expected


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
    named = [place for place, text in enumerate(statements) if text.startswith("RENAME")]
    for count in range(1, len(statements)):
        database = databases.empty(engine)
        run_by_hand(database, "".join(statements[:count]))
        # WHEN Celeriac migrates
        # THEN it starts again, or records the tables that exist
        words = [
            ARE_MADE if count <= place else ARE_RECORDED if count == place + 1 else ARE_THERE
            for place in named
        ]
        assert migrate(database) == told(*words), count
        assert catalog(database, RECORDS) == catalog(djangos, RECORDS)
        assert recorded(database) == recorded(djangos)
        assert not [name for (name,) in database.query("show tables") if name.endswith("_new")]


def test_two_at_once_wait_for_each_other(
    engine: str, databases: Databases, djangos: Database
) -> None:
    database = databases.empty(engine)
    processes = [start(database) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert sorted(out for out, _ in outputs) == sorted([MADE, NOTHING, NOTHING])
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


def insert_record(database: Database, name: str, app: str = APP) -> None:
    database.execute(
        f"insert into {RECORDS} (app, name, applied) values ('{app}', '{name}', "
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
    assert migrate(djangos) == told(ARE_MADE, ARE_THERE)
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
    assert migrate(database) == told(ARE_THERE, ARE_MADE)


def test_a_later_version_is_used_as_it_is(engine: str, djangos: Database) -> None:
    insert_record(djangos, "0015_task_priority")
    djangos.execute(f"alter table {TABLE} add column priority integer")
    assert "later django-celery-results (0015_task_priority)" in migrate(djangos)
    # The tables for chords are created beside them.
    drop_chord_tables(djangos)
    words = migrate(djangos)
    assert "0015_task_priority" in words
    assert f"Celeriac {ARE_MADE}" in words
    # A later version of these is used as it is too.
    insert_record(djangos, "0099_later", CHORDS_APP)
    assert "later Celeriac (0099_later)" in migrate(djangos)
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
