"""The permissions that `docs/security.md` lists are sufficient, and each of them is necessary."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import amqp
import pytest
from celery import Celery

from harness import events, results
from harness.broker import DEAD, EVENTS, RESULTS, Broker
from harness.command import celeriac, fail, succeed
from harness.daemon import Daemon
from harness.database import Database, Databases
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.services import MariaDB, PostgreSQL, RabbitMQ, unique_name
from harness.users import ADVICE, SECURITY, broker_rights, with_login

# The broker ---------------------------------------------------------------------------------


@contextmanager
def broker_user(rabbitmq: RabbitMQ, url: str) -> Iterator[Callable[..., str]]:
    """A user of a virtual host without permissions."""
    name, vhost = unique_name(), urlsplit(url).path[1:]
    rabbitmq.control("add_user", name, "secret")

    def give(*rights: str) -> str:
        rabbitmq.control("set_permissions", "-p", vhost, name, *rights)
        return with_login(url, name, "secret")

    try:
        yield give
    finally:
        rabbitmq.control("delete_user", name)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_rights_at_the_broker(
    own_pipeline: Pipeline, rabbitmq: RabbitMQ, make_daemon: Callable[..., Daemon]
) -> None:
    broker, database = own_pipeline.broker, own_pipeline.database
    with broker_user(rabbitmq, broker.url) as give:
        rights = broker_rights("celeriac")
        daemon = make_daemon(give(*rights), database.url, "--events")
        pipeline = replace(own_pipeline, daemon=daemon)
        daemon.start()
        daemon.wait_for_consuming(2)
        # THEN results, events and dead letters are handled without a warning
        task_id, started = results.new_id(), results.new_id()
        broker.publish(results.result(task_id), results.raw(results.new_id(), b"{"))
        broker.publish(events.message([events.event("task-started", started)]), queue=EVENTS)
        pipeline.wait_for_rows({task_id: "SUCCESS", started: "STARTED"})
        wait_until(lambda: broker.depth(DEAD) == 1, "the dead letter", 20)
        warnings = [line for line in daemon.output().splitlines() if '"WARN"' in line]
        assert len(warnings) == 1 and "dead-letter queue" in warnings[0]
        assert daemon.stop() == 0
        # WHEN one of the permissions is missing, THEN it says so
        for index, words in enumerate(["docs/security.md", ADVICE, ADVICE]):
            fewer = [*rights[:index], "^$", *rights[index + 1 :]]
            if index == 0:
                broker.delete(DEAD)
            daemon = make_daemon(give(*fewer), database.url)
            daemon.start()
            if index == 1:
                # Only publishing shows this.
                daemon.wait_for("consuming")
                broker.publish(results.raw(results.new_id(), b"{"))
            daemon.wait_for(words)
            daemon.kill()
            if index == 0:
                broker.declare(DEAD)


def test_rights_of_workers_and_commands(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    broker = Broker(rabbitmq.create())
    with broker_user(rabbitmq, broker.url) as give:
        # GIVEN a worker that starts first, THEN it declares and binds everything and publishes
        url = give(*broker_rights("worker"))
        worker = Broker(url)
        app = Celery("test", broker=url, backend="celeriac://", set_as_current=False)
        app.backend.store_result("task", 1, "SUCCESS")
        assert broker.depth(RESULTS) == 1
        # THEN it cannot read dead letters
        broker.publish(results.result(results.new_id()), queue=DEAD)
        with pytest.raises(amqp.AccessRefused):
            worker.take(DEAD)
        # THEN looking at dead letters and recording messages need only the listed permissions
        configure, write, read = broker_rights("celeriac")
        own = "|^amq\\.gen-.*$"
        url = give(configure + own, write + own, read + own + "|^celeriac\\.dead$")
        [letter] = succeed("dead", "list", "--json", "--broker", url).splitlines()
        file = tmp_path / "capture.jsonl"
        succeed("capture", file, "--duration", "1s", "--broker", url)
        assert ADVICE in fail("dead", "list", "--broker", give(configure, write, read))
        private = r"|^celeriac\.results\.check-.*$"
        url = give(configure + private, write + private, read + private)
        told = celeriac("check", "--events", "--json", "--broker", url).stdout.decode()
        found = [json.loads(line) for line in told.splitlines()]
        levels = {one["level"] for one in found if one["subject"] in ("broker", "message")}
        # There is one dead letter.
        assert [one["text"] for one in found if one["level"] == "warning"] == [
            "1 messages could not be stored and are in celeriac.dead"
        ]
        assert levels == {"ok", "warning"}


# The databases ------------------------------------------------------------------------------


def grants(heading: str) -> list[str]:
    """The GRANT statements in a section of the document."""
    section = SECURITY.split(f"\n#### {heading}\n")[1].split("\n#")[0]
    block = section.split("```sql\n")[1].split("```")[0]
    return [statement.strip() for statement in block.split(";") if statement.strip()]


@contextmanager
def database_user(
    database: Database, postgresql: PostgreSQL, mariadb: MariaDB
) -> Iterator[tuple[str, str]]:
    name, schema = unique_name(), urlsplit(database.url).path[1:]
    if database.engine == "postgresql":
        postgresql.sql(f"create role {name} login")
    else:
        mariadb.sql(f"create user {name}@'%' identified by 'secret'")
    try:
        yield name, with_login(
            database.url, name, "secret" if database.engine == "mariadb" else ""
        )
    finally:
        if database.engine == "postgresql":
            database.execute(f"drop owned by {name}")
            postgresql.sql(f"drop role {name}")
        else:
            mariadb.sql(f"drop user {name}@'%'")


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_rights_in_the_database(
    engine: str,
    rabbitmq: RabbitMQ,
    databases: Databases,
    postgresql: PostgreSQL,
    mariadb: MariaDB,
    make_daemon: Callable[..., Daemon],
) -> None:
    database, broker = databases.migrated(engine), Broker(rabbitmq.create())
    schema = urlsplit(database.url).path[1:]
    heading = {"postgresql": "PostgreSQL", "mariadb": "MySQL and MariaDB"}[engine]
    with database_user(database, postgresql, mariadb) as (user, url):
        name = user if engine == "postgresql" else f"{user}@'%'"

        for statement in grants(heading):
            statement = re.sub(r"\bto celeriac(@'%')?$", f"to {name}", statement)
            database.execute(statement.replace(" shop.", f" {schema}."))
        pipeline = Pipeline(broker, database, make_daemon(broker.url, url))
        pipeline.daemon.start_consuming()
        # THEN rows of tasks and of groups are inserted and updated
        task_id, group_id = results.new_id(), results.new_id()
        for _ in range(2):
            broker.publish(
                results.result(task_id), results.row(results.group_columns(group_id))
            )
            pipeline.wait_until_handled()
        assert database.statuses()[task_id] == "SUCCESS"
        assert database.query("select count(*) from django_celery_results_groupresult")[0][0] == 1
        assert '"WARN"' not in pipeline.daemon.output()
        pipeline.stop_and_check_queues()
        # WHEN one of the permissions is missing, THEN it says so and stores nothing
        for right in ("insert", "update", "select"):
            database.execute(f"revoke {right} on django_celery_results_taskresult from {name}")
            daemon = make_daemon(broker.url, url)
            daemon.start()
            an_hour_ago = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
            changed = task_id if right == "update" else results.new_id()
            broker.publish(results.result(changed, date_done=an_hour_ago.isoformat()))
            daemon.wait_for(ADVICE)
            database.execute(f"grant {right} on django_celery_results_taskresult to {name}")
            daemon.wait_while_alive(
                lambda: broker.depth("celeriac.results") == 0, "the message to be stored", 40
            )
            assert daemon.stop() == 0
        # WHEN old rows are deleted, THEN that needs one more permission
        cleanup = ("cleanup", "--result-expires", "1s", "--database", url)
        assert "DELETE" in fail(*cleanup)
        [statement] = re.findall(r"grant delete on .* to celeriac(?:@'%')?", SECURITY)[
            slice(0, 1) if engine == "postgresql" else slice(1, 2)
        ]
        statement = re.sub(r"\bto celeriac(@'%')?$", f"to {name}", statement)
        statement = statement.replace(" shop.", f" {schema}.")
        database.execute(statement)
        if engine == "mariadb":
            database.execute(statement.replace("_taskresult", "_groupresult"))
        succeed(*cleanup)
        assert database.count() == 0
