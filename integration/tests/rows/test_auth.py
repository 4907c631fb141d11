"""Signed messages of workers with the serializer `auth`.

The messages are those in `tests/data/auth`, signed by Celery, in the format of the versions up to
5.4 and in that since 5.5. Celery and django-celery-results read the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.security.certificate import Certificate
from celery.security.key import PrivateKey
from celery.security.serialization import SecureSerializer

from harness import events, results
from harness.broker import DEAD, EVENTS, Broker, Message
from harness.daemon import CONSUMING, REPOSITORY, Daemon, binary
from harness.database import Databases
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.project import Project
from harness.services import RabbitMQ

FOLDER = REPOSITORY / "tests" / "data" / "auth"
CELERY_5_4, CELERY_5_7 = (
    json.loads((FOLDER / f"celery-{version}.json").read_text()) for version in ("5.4.0", "5.7.0")
)

#: The task of all these messages.
TASK = "3d8a1a6e-52ad-4a0f-8b3c-0d9a3f4f1c11"


def path(name: str) -> str:
    return str(FOLDER / f"worthless-test-{name}.pem")


STORE = ("--security-cert-store", path("worker-certificate"))


def signing(name: str) -> dict[str, str]:
    """The settings of a project that signs and verifies everything with a certificate."""
    return {
        "TASK_SERIALIZER": "auth",
        "RESULT_SERIALIZER": "auth",
        "ACCEPT_CONTENT": "auth",
        "SECURITY_KEY": path(f"{name}-key"),
        "SECURITY_CERTIFICATE": path(f"{name}-certificate"),
    }


def signed(envelope: str, task_id: str = TASK) -> Message:
    return results.raw(task_id, envelope.encode(), content_type="application/data")


def envelope(body: object) -> str:
    """A message as a worker of the newest Celery signs it."""
    key = PrivateKey(Path(path("worker-key")).read_text())
    certificate = Certificate(Path(path("worker-certificate")).read_text())
    return SecureSerializer(key, certificate).serialize(body)


@pytest.fixture
def make_pipeline(
    rabbitmq: RabbitMQ, databases: Databases, make_daemon: Callable[..., Daemon]
) -> Callable[..., Pipeline]:
    """Starts daemons on SQLite with options."""

    def make(*options: str) -> Pipeline:
        broker, database = Broker(rabbitmq.create()), databases.migrated("sqlite")
        daemon = make_daemon(broker.url, database.url, *options)
        daemon.start_consuming()
        return Pipeline(broker, database, daemon)

    return make


@pytest.mark.parametrize("made", [CELERY_5_7, CELERY_5_4], ids=["5.7", "5.4"])
def test_a_result_of_rpc_is_a_dead_letter_that_says_what_to_do(
    make_pipeline: Callable[..., Pipeline], made: Any
) -> None:
    pipeline = make_pipeline(*STORE)
    pipeline.broker.publish(signed(made["json"]))
    wait_until(lambda: pipeline.broker.depth(DEAD) == 1, "the dead letter", 10)
    [letter] = pipeline.broker.take(DEAD)
    assert letter.headers["x-celeriac-reason"] == "not-accepted"
    assert "celeriac://" in letter.headers["x-celeriac-error"]
    assert pipeline.database.statuses() == {}
    pipeline.stop_and_check_queues()


def test_the_command_takes_the_certificates_from_the_settings(
    python: dict[str, Path], rabbitmq: RabbitMQ, databases: Databases, tmp_path: Path
) -> None:
    broker, database = Broker(rabbitmq.create()), databases.migrated("sqlite")
    settings = signing("worker") | {"CELERIAC_BIN": str(binary())}
    project = Project(python["celery-5.7"], database.url, broker.url, settings)
    daemon = project.daemon(tmp_path / "celeriac.log", "--events")
    daemon.start()
    try:
        wait_until(lambda: daemon.output().count(CONSUMING) == 2, "both consumers", 20)
        # WHEN a signed event arrives, and an unsigned result, which the project does not accept
        task_id, unsigned = results.new_id(), results.new_id()
        body = envelope([events.event("task-started", task_id)])
        message = events.raw(body.encode(), content_type="application/data")
        broker.publish(message, queue=EVENTS)
        broker.publish(results.result(unsigned))
        # THEN the event is verified and stored, and the result is a dead letter
        wait_until(lambda: task_id in database.statuses(), "the row", 10)
        wait_until(lambda: broker.depth(DEAD) == 1, "the dead letter", 10)
    finally:
        daemon.kill()
    assert unsigned not in database.statuses()
    [letter] = broker.take(DEAD)
    assert letter.headers["x-celeriac-reason"] == "not-accepted"


def test_signed_events_are_stored(make_pipeline: Callable[..., Pipeline]) -> None:
    pipeline = make_pipeline(*STORE, "--events")
    task_id = results.new_id()
    body = [events.received(task_id), events.event("task-started", task_id)]
    message = events.raw(envelope(body).encode(), content_type="application/data")
    pipeline.daemon.wait_for_consuming(2)
    pipeline.broker.publish(message, queue=EVENTS)
    pipeline.wait_for_rows({task_id: "STARTED"})
    row = pipeline.database.row(task_id)
    assert row["content_type"] == "application/vnd.celeriac.event+json"
    pipeline.stop_and_check_queues()


def test_messages_with_untrusted_signatures_are_dead_letters(
    make_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = make_pipeline(*STORE)
    body = results.body(results.new_id())
    cases = {
        "by another key": (CELERY_5_7["twin"], "unverified"),
        "by somebody unknown": (CELERY_5_7["odd"], "unverified"),
        "with another digest": (CELERY_5_4["sha512"], "unverified"),
        "twice": (CELERY_5_7["auth"], "undecodable"),
        "not at all": (json.dumps(body), "undecodable"),
        "in part": (CELERY_5_7["json"][:-40], "unverified"),
    }
    # THEN each has its reason, and a result after them is stored
    good = results.new_id()
    pipeline.broker.publish(*(signed(envelope) for envelope, _ in cases.values()))
    pipeline.broker.publish(results.result(good))
    pipeline.wait_for_rows({good: "SUCCESS"})
    wait_until(lambda: pipeline.broker.depth(DEAD) == len(cases), "the dead letters", 30)
    letters = pipeline.broker.take(DEAD)
    reasons = [letter.headers["x-celeriac-reason"] for letter in letters]
    assert reasons == [reason for _, reason in cases.values()]
    assert list(pipeline.database.statuses()) == [good]
    pipeline.stop_and_check_queues()


def test_without_certificates_a_dead_letter_names_the_setting(
    make_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = make_pipeline()
    pipeline.broker.publish(signed(CELERY_5_7["json"]))
    wait_until(lambda: pipeline.broker.depth(DEAD) == 1, "the dead letter", 10)
    [letter] = pipeline.broker.take(DEAD)
    assert letter.headers["x-celeriac-reason"] == "unverified"
    assert "security-cert-store" in letter.headers["x-celeriac-error"]
    pipeline.stop_and_check_queues()


def test_an_expired_certificate_ends_the_daemon_at_the_start(
    rabbitmq: RabbitMQ, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon(
        Broker(rabbitmq.create()).url,
        f"sqlite:///{tmp_path / 'db'}",
        *("--security-cert-store", path("expired-certificate")),
    )
    daemon.start()
    wait_until(lambda: not daemon.is_alive(), "the daemon's end", 10)
    assert "expired-certificate.pem has a certificate that has expired" in daemon.output()
