"""Shared fixtures: servers, environments, databases and daemons.

Servers and environments last for the session, which is that of one pytest-xdist worker. So do three
daemons, one per database, for tests that only send messages; tests that disturb a daemon, a
database or a broker have their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from harness import environments
from harness.broker import Broker
from harness.daemon import Daemon
from harness.database import ENGINES, Databases
from harness.pipeline import Pipeline
from harness.processes import end_on_terminate, let_children_have_signals
from harness.services import KINDS, MariaDB, PostgreSQL, RabbitMQ, service, unique_name

#: Set on a test that has failed, for fixtures that run afterwards.
FAILED = pytest.StashKey[bool]()


def pytest_configure() -> None:
    end_on_terminate()
    let_children_have_signals()


#: Set in the controller of pytest-xdist: what its workers share, and how to clean it up.
SHARED = pytest.StashKey[tuple[dict[str, str], ExitStack]]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Gives all workers of pytest-xdist the same servers and migrated databases."""
    if SHARED not in node.config.stash:
        stack = ExitStack()
        node.config.stash[SHARED] = {}, stack
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="celeriac_test_")))
        servers = {kind: stack.enter_context(service(kind)) for kind in KINDS}
        for server in servers.values():
            os.environ |= server.environment()
        python = environments.python("celery-5.7")
        databases = Databases(python, servers["postgresql"], servers["mariadb"], folder)
        node.config.stash[SHARED] = databases.templates(), stack
    # Workers that are interrupted clean up, which can take longer than the default of ten seconds.
    node.nodemanager.EXIT_TIMEOUT = 60
    node.workerinput["templates"] = node.config.stash[SHARED][0]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fails if pytest-xdist ignores groups, whose fixtures would then be created in every worker.
    """
    if getattr(session.config.option, "loadgroup", False):
        grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
        assert all("@" in item.nodeid for item in grouped), "tests are not grouped"


def pytest_unconfigure(config: pytest.Config) -> None:
    if SHARED in config.stash:
        config.stash[SHARED][1].close()


@pytest.fixture(scope="session")
def python() -> dict[str, Path]:
    """The Python of each virtual environment."""
    return {name: environments.python(name) for name in environments.names()}


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    with service("rabbitmq") as server:
        yield server


@pytest.fixture(autouse=True)
def _remove_virtual_hosts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Removes the virtual hosts of a test. A broker with hundreds of them becomes very slow."""
    if "own_pipeline" not in request.fixturenames and "rabbitmq" not in request.fixturenames:
        yield
        return
    server = request.getfixturevalue("rabbitmq")
    count = server.count()
    yield
    if not {"pipeline", "pipelines"} & set(request.fixturenames):
        server.remove_since(count)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with service("postgresql") as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    with service("mariadb") as server:
        yield server


@pytest.fixture(scope="session")
def databases(
    python: dict[str, Path],
    postgresql: PostgreSQL,
    mariadb: MariaDB,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Databases:
    folder = tmp_path_factory.mktemp("databases")
    templates = getattr(request.config, "workerinput", {}).get("templates")
    return Databases(python["celery-5.7"], postgresql, mariadb, folder, templates)


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def pipelines(
    rabbitmq: RabbitMQ, databases: Databases, logs: Path
) -> Iterator[dict[str, Pipeline]]:
    """One running daemon per database."""
    with ExitStack() as stack:
        made = {}
        for engine in ENGINES:
            broker, database = Broker(rabbitmq.create()), databases.migrated(engine)
            log = logs / f"celeriac-{engine}.log"
            daemon = Daemon(log, broker.url, database.url, "--rpc-arguments")
            made[engine] = Pipeline(broker, database, daemon)
            # A failed test replaces the daemon, so this kills the current one.
            stack.callback(lambda pipeline=made[engine]: pipeline.daemon.kill())
            daemon.start_consuming()
        yield made
        for pipeline in made.values():
            assert pipeline.daemon.stop() == 0, pipeline.daemon.last_words()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pipeline(
    request: pytest.FixtureRequest,
    pipelines: dict[str, Pipeline],
    engine: str,
    rabbitmq: RabbitMQ,
) -> Iterator[Pipeline]:
    """The shared daemon of one database, which must survive the test.

    After a failure the next test gets a new virtual host and a new daemon, because one message that
    stops the daemon should not fail all later tests.
    """
    shared = pipelines[engine]
    yield shared
    alive = shared.daemon.is_alive()
    if FAILED in request.node.stash or not alive:
        shared.daemon.kill()
        shared.broker = Broker(rabbitmq.create())
        shared.daemon = Daemon(shared.daemon.log, shared.broker.url, shared.database.url)
        shared.daemon.start_consuming()
    assert alive, "the daemon died"


@pytest.fixture
def make_daemon(logs: Path) -> Iterator[Callable[..., Daemon]]:
    """Creates daemons that are not yet started; they are killed after the test."""
    with ExitStack() as stack:

        def make(broker: str, database: str, *options: str) -> Daemon:
            daemon = Daemon(logs / f"{unique_name()}.log", broker, database, *options)
            stack.callback(daemon.kill)
            return daemon

        yield make


@pytest.fixture
def own_pipeline(
    rabbitmq: RabbitMQ, databases: Databases, engine: str, make_daemon: Callable[..., Daemon]
) -> Iterator[Pipeline]:
    """A broker, a database and a daemon, not yet started, for one test only."""
    broker, database = Broker(rabbitmq.create()), databases.migrated(engine)
    yield Pipeline(broker, database, make_daemon(broker.url, database.url))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Adds the end of the daemon's log to a failure."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        for value in getattr(item, "funcargs", {}).values():
            daemon = value.daemon if isinstance(value, Pipeline) else value
            if isinstance(daemon, Daemon) and daemon.log.exists():
                report.sections.append(("the end of celeriac's log", daemon.last_words()))
    return report
