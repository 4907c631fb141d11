"""The result backend `celeriac://` in Celery workers, and reading results in Django.

The worker processes run without Django: a package of that name which raises ImportError precedes
the real one in their path.
"""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import amqp
import pytest
from celeriac import program, publisher
from celeriac.backend import EVENT, CeleriacBackend, ReadingError
from celeriac.options import Options
from celeriac.publisher import Link, PublishError, RefusedError
from celery import Celery, chain, chord, current_app, group
from celery.app.task import Context
from celery.exceptions import BackendStoreError, ImproperlyConfigured, SoftTimeLimitExceeded
from kombu.exceptions import EncodeError

from harness import results
from harness.broker import DEAD, QUEUES, RESULTS, Broker
from harness.daemon import CONSUMING, Daemon, binary
from harness.database import Databases
from harness.environments import PACKAGE
from harness.pipeline import Pipeline
from harness.processes import Process, wait_until
from harness.project import SITE, Project, clean_environment
from harness.proxy import Proxy
from harness.services import PrivateRabbitMQ, RabbitMQ, private
from harness.users import another_user

EXCHANGE = "celeriac"

#: Gives up at once instead of after 20 seconds.
ONE_TRY = {"max_retries": 0}

TASKS = '''
"""The tasks of a worker that has no Django."""

import os
import time

from celery import Celery

app = Celery("without_django", broker=os.environ["BROKER"], backend="celeriac://")
app.conf.task_track_started = True
app.conf.result_extended = True
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_deduplicate_successful_tasks = True
app.conf.task_acks_late = True


class Impatient(app.backend.__class__):
    retry_policy = {"max_retries": 1, "interval_start": 0.1}


if os.environ.get("IMPATIENT"):
    app.backend.__class__ = Impatient


@app.task
def add(left, right):
    return left + right


@app.task
def fail(*_):
    raise ValueError("as it was told")


@app.task(bind=True)
def report(self):
    self.update_state(state="PROGRESS", meta={"done": 1})
    return os.getpid()


@app.task(ignore_result=True)
def ignored():
    pass


@app.task
def sleep(seconds):
    time.sleep(seconds)
'''


@pytest.fixture
def backend(broker: Broker) -> CeleriacBackend:
    return make_backend(broker.url)


@pytest.fixture(autouse=True)
def _nothing_was_warned_of() -> None:
    publisher._warned.clear()


def make_backend(broker: str, url: str = "celeriac://", **settings: Any) -> CeleriacBackend:
    app = Celery("test", broker=broker, backend=url, set_as_current=False)
    app.conf.update(settings)
    return app.backend


def bodies(broker: Broker, queue: str = RESULTS) -> list[dict[str, Any]]:
    """Takes all messages out of the queue."""
    return [json.loads(message.body) for message in broker.take(queue)]


def ids(broker: Broker) -> set[str]:
    return {body["task_id"] for body in bodies(broker)}


def statuses(taken: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The states of each task in the order of their messages."""
    found: dict[str, list[str]] = {}
    for body in taken:
        found.setdefault(body["task_id"], []).append(body["status"])
    return found


# Messages -------------------------------------------------------------------------------------


def test_messages_have_the_documented_format(broker: Broker) -> None:
    backend = make_backend(broker.url, result_extended=True)
    request = Context(
        id="t1",
        task="shop.price",
        args=("leek",),
        kwargs={},
        argsrepr="('leek',)",
        kwargsrepr="{}",
        hostname="celery@worker",
        periodic_task_name="nightly",
        meta={"shelf": 7},
        children=[],
        delivery_info={"routing_key": "celery"},
        retries=2,
    )
    before = datetime.now(timezone.utc)

    backend.store_result("t1", {"total": "9.99"}, "SUCCESS", request=request)

    [message] = broker.take(RESULTS)
    body = json.loads(message.body)
    date_done = datetime.fromisoformat(body.pop("date_done"))
    assert before <= date_done <= datetime.now(timezone.utc)
    assert body == {
        "version": 1,
        "task_id": "t1",
        "status": "SUCCESS",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "result": '{"total": "9.99"}',
        "meta": '{"shelf": 7, "children": []}',
        "traceback": None,
        "task_name": "shop.price",
        "task_args": "\"('leek',)\"",
        "task_kwargs": '"{}"',
        "worker": "celery@worker",
        "periodic_task_name": "nightly",
        "queue": "celery",
        "retries": 2,
    }
    assert message.properties == {
        "content_type": "application/vnd.celeriac.task-result+json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "correlation_id": "t1",
    }


def test_the_traceback_is_sent_without_extended_results(
    broker: Broker, backend: CeleriacBackend
) -> None:
    request = Context(id="t1", task="shop.price", args=(), kwargs={}, hostname="w")
    backend.store_result(
        "t1", ValueError(1), "FAILURE", traceback="Traceback …\ud800", request=request
    )
    [body] = bodies(broker)
    assert json.loads(body["result"])["exc_type"] == "ValueError"
    assert body["traceback"] == "Traceback …\ud800"
    described = ("task_name", "task_args", "task_kwargs", "worker", "periodic_task_name")
    assert {body[name] for name in described} == {None}


def test_a_binary_serializer_is_sent_in_base64(broker: Broker) -> None:
    make_backend(broker.url, result_serializer="pickle").store_result("t1", None, "SUCCESS")
    [body] = bodies(broker)
    assert (body["content_type"], body["content_encoding"], body["result"]) == (
        "application/x-python-serialize",
        "binary",
        "gAROLg==",
    )


def test_values_become_text_as_in_django(broker: Broker) -> None:
    backend = make_backend(broker.url, result_extended=True)
    request = Context(id=7, task=8, args=(5,), kwargs=None, hostname=9, meta=None)
    backend.store_result(7, 1, "SUCCESS", traceback=10, request=request)
    [message] = broker.take(RESULTS)
    body = json.loads(message.body)
    assert message.properties["correlation_id"] == "7"
    names = ("task_id", "task_name", "worker", "traceback", "task_args", "task_kwargs")
    assert [body[name] for name in names] == ["7", "8", "9", "10", "[5]", None]


def test_a_result_that_cannot_be_encoded_fails(broker: Broker, backend: CeleriacBackend) -> None:
    with pytest.raises(EncodeError, match="not JSON serializable"):
        backend.store_result("t1", object(), "SUCCESS")


def test_a_group_is_saved_and_restored_at_once(broker: Broker, backend: CeleriacBackend) -> None:
    app = backend.app
    saved = app.GroupResult("g1", [app.AsyncResult("t1"), app.AsyncResult("t2")])
    saved.save(backend=backend)
    [message] = broker.take(RESULTS)
    body = json.loads(message.body)
    assert datetime.fromisoformat(body.pop("date_done")).tzinfo
    assert body == {
        "version": 1,
        "group_id": "g1",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "result": '[["g1", null], [[["t1", null], null], [["t2", null], null]]]',
    }
    group_type = "application/vnd.celeriac.group-result+json"
    assert message.properties["content_type"] == group_type
    assert app.GroupResult.restore("g1", backend=backend) == saved


# Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (None, Options()),
        ("celeriac://", Options()),
        ("celeriac://?queue=shop.results", Options(queue="shop.results")),
        (
            "celeriac://?exchange=e&queue=q&dead_queue=d&broker=amqp%3A%2F%2Fu%3Ap%40h%2Fv",
            Options("e", "q", "d", "amqp://u:p@h/v"),
        ),
    ],
)
def test_options(url: str | None, options: Options) -> None:
    assert Options.parse(url) == options
    assert Options.parse(options.as_uri(include_password=True)) == options


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("celeriac://?que=a", "write one of exchange, queue, dead_queue, broker"),
        ("celeriac://?queue=a&queue=b", "twice"),
        ("celeriac://?queue=", "is empty"),
        ("celeriac://?exchange=amq.direct", "do not begin with `amq.`"),
        ("celeriac://?queue=" + "ü" * 128, "at most 255 bytes"),
        ("celeriac://?queue=celeriac.dead", "same name"),
        ("celeriac://u:secret@host//", "broker="),
        ("celeriac://?broker=guest:secret@host", "a scheme: write broker="),
        ("celeriac://?broker=amqp%3A%2F%2Fa%3Bguest:secret@b", "a scheme: write broker="),
    ],
)
def test_invalid_options_are_refused(url: str, words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        Options.parse(url)
    assert "secret" not in str(caught.value)


def test_the_url_that_is_shown_has_no_password() -> None:
    url = "celeriac://?broker=amqp%3A%2F%2Fu%3Asecret%40a%2F%2F%3Bamqp%3A%2F%2Fu%3Asecret%40b%2F%2F"
    backend = make_backend("amqp://", url)
    shown = backend.as_uri()
    assert "secret" not in shown
    assert (
        shown == "celeriac://?broker=amqp%3A%2F%2Fu%3A**%40a%2F%2F%3Bamqp%3A%2F%2Fu%3A**%40b%2F%2F"
    )
    assert backend.as_uri(include_password=True).count("secret") == 2


def test_a_pickle_has_no_password() -> None:
    url = "celeriac://?queue=q&broker=amqp%3A%2F%2Fu%3Asecret%40a%2F%2F"
    backend = make_backend("amqp://", url)
    pickled = pickle.dumps(backend.app.AsyncResult("t1").backend)
    assert b"secret" not in pickled
    # THEN the app that loads the pickle provides the URL of its own broker
    with current(backend.app):
        assert pickle.loads(pickled).options == backend.options
    with current(make_backend("amqp://", "rpc://").app):
        assert pickle.loads(pickled).options == Options(queue="q")


@contextmanager
def current(app: Celery) -> Iterator[None]:
    before = current_app._get_current_object()
    app.set_current()
    try:
        yield
    finally:
        before.set_current()


def test_custom_names_and_another_broker(broker: Broker) -> None:
    url = Options("shop", "shop.results", "shop.dead", broker.url).as_uri(include_password=True)
    make_backend("amqp://nobody@127.0.0.1:1//", url).store_result("t1", 1, "SUCCESS")
    assert [body["task_id"] for body in bodies(broker, "shop.results")] == ["t1"]
    assert broker.exists("shop.dead")


def test_a_broker_that_is_not_rabbitmq_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="celeriac://\\?broker="):
        make_backend("memory://").store_result("t1", 1, "SUCCESS")


# Queues ---------------------------------------------------------------------------------------


def test_everything_is_declared_as_the_daemon_declares_it(
    broker: Broker, backend: CeleriacBackend
) -> None:
    backend.store_result("t1", 1, "SUCCESS")
    # THEN the arguments are those of the daemon; others would be an error
    broker.declare(RESULTS)
    broker.declare(DEAD)
    with broker.channel() as channel:
        channel.exchange_declare(EXCHANGE, "direct", durable=True, auto_delete=False)


def test_a_queue_with_other_arguments_is_used_as_it_is(
    broker: Broker, backend: CeleriacBackend, caplog: pytest.LogCaptureFixture
) -> None:
    broker.declare(RESULTS, {})
    with broker.channel() as channel:
        channel.exchange_declare(EXCHANGE, "topic", durable=True, auto_delete=False)
    backend.store_result("t1", 1, "SUCCESS")
    make_backend(broker.url).store_result("t2", 1, "SUCCESS")
    assert ids(broker) == {"t1", "t2"}
    warned = [record.getMessage() for record in caplog.records if "as it is" in record.message]
    assert [line.split(" exists")[0] for line in warned] == [
        f"the exchange `{EXCHANGE}`",
        f"the queue `{RESULTS}`",
    ]


@pytest.mark.parametrize("deleted", ["queue", "exchange", "both"])
def test_deleted_queues_and_exchanges_are_declared_again(
    broker: Broker, backend: CeleriacBackend, deleted: str
) -> None:
    backend.store_result("t0", 1, "SUCCESS")
    broker.take(RESULTS)
    with broker.channel() as channel:
        if deleted != "exchange":
            channel.queue_delete(RESULTS)
        if deleted != "queue":
            channel.exchange_delete(EXCHANGE)
    for number in range(3):
        backend.store_result(f"t{number}", 1, "SUCCESS")
    assert ids(broker) == {"t0", "t1", "t2"}


def test_a_user_who_may_only_write(rabbitmq: RabbitMQ, broker: Broker) -> None:
    with another_user(rabbitmq, broker, "^$", ".*", "^$") as url:
        backend = make_backend(url)
        backend.retry_policy = ONE_TRY
        # WHEN nothing is declared
        with pytest.raises(PublishError, match="celeriac run.*permission to configure") as caught:
            backend.store_result("t1", 1, "SUCCESS")
        assert "pass" not in str(caught.value).replace("permission", "")
        # WHEN the daemon has declared everything
        for queue in QUEUES:
            broker.declare(queue)
        with broker.channel() as channel:
            channel.exchange_declare(EXCHANGE, "direct", durable=True, auto_delete=False)
            channel.queue_bind(RESULTS, EXCHANGE, RESULTS)
        backend.store_result("t2", 1, "SUCCESS")
    assert ids(broker) == {"t2"}


def test_a_user_who_may_not_write(rabbitmq: RabbitMQ, broker: Broker) -> None:
    broker.declare(RESULTS)
    with another_user(rabbitmq, broker, ".*", "^$", ".*") as url:
        started = time.monotonic()
        with pytest.raises(RefusedError, match="ACCESS_REFUSED.*permission to write"):
            make_backend(url).store_result("t1", 1, "SUCCESS")
    assert time.monotonic() - started < 20, "it was retried in vain"


def test_a_wrong_password_is_reported_but_not_shown(broker: Broker) -> None:
    url = f"amqp://guest:wrong-secret@{broker.url.partition('@')[2]}"
    backend = make_backend(url)
    backend.retry_policy = ONE_TRY
    with pytest.raises(PublishError, match="check the login, the virtual host") as caught:
        backend.store_result("t1", 1, "SUCCESS")
    assert "secret" not in str(caught.value)


def test_a_temporary_refusal_is_retried(rabbitmq: RabbitMQ, broker: Broker) -> None:
    vhost = broker.url.rpartition("/")[2]
    rabbitmq.control("set_vhost_limits", "-p", vhost, '{"max-connections": 0}')
    backend = make_backend(broker.url, result_backend_always_retry=True)
    with pytest.raises(PublishError, match="connection limit") as caught:
        backend._store_result("t1", 1, "SUCCESS")
    assert backend.exception_safe_to_retry(caught.value)
    storing = threading.Thread(target=backend.store_result, args=("t2", 1, "SUCCESS"))
    storing.start()
    rabbitmq.control("clear_vhost_limits", "-p", vhost)
    storing.join(30)
    assert ids(broker) == {"t2"}


def fill(broker: Broker) -> None:
    """Declares a queue with room for one message and fills it."""
    broker.declare(DEAD)
    broker.declare(RESULTS, QUEUES[RESULTS] | {"x-max-length": 1})
    backend = make_backend(broker.url)
    backend.retry_policy = ONE_TRY
    for _ in range(10):
        # A quorum queue accepts a few messages more than its limit before it refuses.
        try:
            backend.store_result("filler", 1, "SUCCESS")
        except PublishError:
            return
    pytest.fail("the queue does not get full")


def test_a_full_queue_is_an_error(broker: Broker, backend: CeleriacBackend) -> None:
    fill(broker)
    backend.retry_policy = {"max_retries": 2, "interval_start": 0.1, "interval_max": 0.1}
    with pytest.raises(BackendStoreError, match=f"`{RESULTS}` is full") as caught:
        backend.store_result("t1", 1, "SUCCESS")
    assert (caught.value.task_id, caught.value.state) == ("t1", "SUCCESS")
    # THEN the connection is used again, because it was not the cause
    links = dict(backend.publisher._links)
    assert links
    broker.take(RESULTS)
    backend.store_result("t2", 1, "SUCCESS")
    assert backend.publisher._links == links
    assert "t2" in ids(broker)


def test_always_retry_waits_for_space_and_keeps_the_time(broker: Broker) -> None:
    fill(broker)
    backend = make_backend(
        broker.url,
        result_backend_always_retry=True,
        result_backend_base_sleep_between_retries_ms=50,
        result_backend_max_sleep_between_retries_ms=100,
    )
    storing = threading.Thread(target=backend.store_result, args=("t1", 1, "SUCCESS"))
    before = datetime.now(timezone.utc)
    storing.start()
    time.sleep(1)
    assert storing.is_alive()
    broker.take(RESULTS)
    storing.join(10)
    [body] = [body for body in bodies(broker) if body["task_id"] == "t1"]
    assert (datetime.fromisoformat(body["date_done"]) - before).total_seconds() < 0.5


def test_always_retry_ends_after_celerys_maximum(broker: Broker) -> None:
    fill(broker)
    backend = make_backend(
        broker.url, result_backend_always_retry=True, result_backend_max_retries=3
    )
    with pytest.raises(BackendStoreError):
        backend.store_result("t1", 1, "SUCCESS")


# Connections ----------------------------------------------------------------------------------


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    with Proxy(broker.url, 5672) as standing_between:
        yield standing_between


def test_nothing_is_lost_when_connections_are_cut(broker: Broker, proxy: Proxy) -> None:
    backend = make_backend(proxy.url)
    stop = threading.Event()

    def cut() -> None:
        while not stop.wait(0.15):
            proxy.cut()

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        for number in range(600):
            backend.store_result(f"t{number}", 1, "SUCCESS")
    finally:
        stop.set()
        cutting.join()
    assert ids(broker) == {f"t{number}" for number in range(600)}


def test_waiting_for_confirms_has_a_time_limit(
    broker: Broker, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(publisher, "PUBLISH_SECONDS", 3.0)
    backend = make_backend(proxy.url, broker_connection_timeout=1)
    backend.store_result("t0", 1, "SUCCESS")
    proxy.stall()
    started = time.monotonic()
    with pytest.raises(PublishError, match="timed out|has not confirmed it in time"):
        backend.store_result("t1", 1, "SUCCESS")
    assert time.monotonic() - started < 8
    proxy.cut()
    proxy.flow()
    backend.store_result("t2", 1, "SUCCESS")
    assert {"t0", "t2"} <= ids(broker)


def test_all_connections_are_busy(
    broker: Broker, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(proxy.url, broker_pool_limit=1)
    backend.store_result("t0", 1, "SUCCESS")
    proxy.stall()
    storing = threading.Thread(target=backend.store_result, args=("t1", 1, "SUCCESS"))
    storing.start()
    wait_until(lambda: bool(backend.publisher._users), "the connection to be in use", 10)
    monkeypatch.setattr(publisher, "PUBLISH_SECONDS", 0.5)
    with pytest.raises(PublishError, match="all 1 connections for results are busy"):
        backend.store_result("t2", 1, "SUCCESS")
    proxy.flow()
    storing.join(30)
    assert ids(broker) == {"t0", "t1"}


def test_declaring_has_a_time_limit(
    broker: Broker, backend: CeleriacBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker sends nothing but heartbeats."""
    open_channel = Link._open

    def only_heartbeats(link: Link) -> None:
        monkeypatch.setattr(amqp.Connection, "blocking_read", lambda *_: time.sleep(0.05))
        open_channel(link)

    monkeypatch.setattr(Link, "_open", only_heartbeats)
    monkeypatch.setattr(publisher, "ANSWER_SECONDS", 0.5)
    backend.retry_policy = ONE_TRY
    with pytest.raises(PublishError, match="timed out"):
        backend.store_result("t1", 1, "SUCCESS")


def test_a_soft_time_limit_at_any_step_loses_nothing(
    broker: Broker, backend: CeleriacBackend
) -> None:
    """A soft time limit raises its exception at any point of a task; here at each line in turn."""
    publishing, steps = backend.publisher, 0
    lines = Path(publisher.__file__).read_text().splitlines()
    while steps < 1000:
        left = steps

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            code = frame.f_code
            # Unlike a signal, a trace function can raise between the end of a `with` block and its
            # lock, and at `try`.
            if code.co_filename != publisher.__file__ or code.co_name == "publisher":
                return None
            if event == "line" and lines[frame.f_lineno - 1].strip() != "try:":
                left -= 1
                if left == -1:
                    raise SoftTimeLimitExceeded
            return trace

        sys.settrace(trace)
        try:
            backend.store_result("t1", 1, "SUCCESS")
        except SoftTimeLimitExceeded:
            pass
        finally:
            sys.settrace(None)
        # THEN the next result is stored, and no connection is left in use
        assert not publishing._users
        backend.store_result(f"next-{steps}", 1, "SUCCESS")
        assert len(publishing._links) == 1
        steps += 1
        if left >= 0:
            break
    assert steps > 50
    assert ids(broker) - {"t1"} == {f"next-{step}" for step in range(steps)}


def test_a_memory_alarm_is_named(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a memory alarm, RabbitMQ stops reading from connections that publish."""
    monkeypatch.setattr(publisher, "ANSWER_SECONDS", 1.0)
    with private("rabbitmq") as server:
        assert isinstance(server, PrivateRabbitMQ)
        own = Broker(server.url)
        backend = make_backend(own.url)
        backend.retry_policy = ONE_TRY
        backend.store_result("t0", 1, "SUCCESS")
        server.control("set_vm_memory_high_watermark", "0.000001")
        time.sleep(2)
        with pytest.raises(PublishError, match="short of memory"):
            backend.store_result("t1", 1, "SUCCESS")
        server.control("set_vm_memory_high_watermark", "0.9")
        wait_until(lambda: amqp_takes(backend), "the broker to go on", 20)
        # WHEN the broker restarts while results are published
        backend.retry_policy = CeleriacBackend.retry_policy
        monkeypatch.setattr(publisher, "ANSWER_SECONDS", 30.0)
        monkeypatch.setattr(publisher, "PUBLISH_SECONDS", 120.0)
        backend.retry_policy = {"max_retries": None, "interval_start": 0.1, "interval_max": 1}
        restart = threading.Thread(target=lambda: (server.stop(), server.start()))
        restart.start()
        number = 0
        while restart.is_alive():
            backend.store_result(f"s{number}", 1, "SUCCESS")
            number += 1
        restart.join()
        backend.store_result(f"s{number}", 1, "SUCCESS")
        assert {f"s{n}" for n in range(number + 1)} <= ids(own)


def amqp_takes(backend: CeleriacBackend) -> bool:
    try:
        backend.store_result("probe", 1, "SUCCESS")
    except PublishError:
        return False
    return True


def test_an_idle_connection_that_the_broker_closed(
    rabbitmq: RabbitMQ,
    broker: Broker,
    backend: CeleriacBackend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend.store_result("t1", 1, "SUCCESS")
    vhost = broker.url.rpartition("/")[2]
    rabbitmq.control("close_all_connections", "--vhost", vhost, "a test")
    with caplog.at_level(logging.WARNING):
        backend.store_result("t2", 1, "SUCCESS")
    assert ids(broker) == {"t1", "t2"}
    told = [record for record in caplog.records if record.name.startswith("celeriac")]
    assert not told, "a closed idle connection is no reason to warn"


def test_another_broker_of_the_list_is_tried(broker: Broker) -> None:
    make_backend(f"amqp://127.0.0.1:1//;{broker.url}").store_result("t1", 1, "SUCCESS")
    assert ids(broker) == {"t1"}


def test_an_unreachable_broker_is_an_error() -> None:
    backend = make_backend("amqp://guest:secret@127.0.0.1:1//")
    backend.retry_policy = ONE_TRY
    with pytest.raises(PublishError, match="127.0.0.1:1.*Connection refused") as caught:
        backend.store_result("t1", 1, "SUCCESS")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("limit", "most"), [(3, 3), (0, 0)])
def test_threads_share_a_pool(broker: Broker, limit: int, most: int) -> None:
    backend = make_backend(broker.url, broker_pool_limit=limit)

    def store(thread: int) -> None:
        for number in range(10):
            backend.store_result(f"{thread}-{number}", 1, "SUCCESS")

    threads = [threading.Thread(target=store, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(backend.publisher._links) <= most
    assert ids(broker) == {f"{thread}-{number}" for thread in range(8) for number in range(10)}


FORK = """
import os, sys
from celery import Celery

app = Celery(broker=sys.argv[1], backend="celeriac://")
app.backend.store_result("parent-before", 1, "SUCCESS")
before = dict(app.backend.publisher._links)
if not (child := os.fork()):
    app.backend.store_result("child", 1, "SUCCESS")
    assert before.keys() == app.backend.publisher._links.keys() == {0}
    assert app.backend.publisher._links != before
    sys.exit()  # with all that an interpreter does at its end
assert os.waitpid(child, 0)[1] == 0
app.backend.store_result("parent-after", 1, "SUCCESS")
assert app.backend.publisher._links == before, "the child has closed the parent's connection"
"""


def test_a_forked_child_has_its_own_connection(broker: Broker) -> None:
    subprocess.run([sys.executable, "-c", FORK, broker.url], check=True, timeout=60)
    assert ids(broker) == {"parent-before", "child", "parent-after"}


# Workers --------------------------------------------------------------------------------------


@pytest.fixture
def without_django(without_django: dict[str, str], tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tasks.py").write_text(TASKS)
    return without_django


Start = Callable[..., Process]


@pytest.fixture
def start_worker(broker: Broker, without_django: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts a worker with the given options and waits for it to be ready."""
    started: list[Process] = []

    def start(*options: str, **env: str) -> Process:
        celery = Path(sys.executable).with_name("celery")
        worker = Process(
            "Celery worker",
            [celery, "-A", "tasks", "worker", "--loglevel", "INFO", *options],
            tmp_path / "worker.log",
            env=without_django | {"BROKER": broker.url} | env,
            cwd=tmp_path,
        )
        started.append(worker)
        worker.start()
        worker.wait_for(" ready.")
        return worker

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def sender(broker: Broker) -> Celery:
    return Celery("sender", broker=broker.url, backend="celeriac://", set_as_current=False)


def wait_for_messages(broker: Broker, count: int) -> list[dict[str, Any]]:
    def enough() -> bool:
        return broker.exists(RESULTS) and broker.depth(RESULTS) >= count

    wait_until(enough, f"{count} messages", 30)
    return bodies(broker)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_worker_without_django(
    broker: Broker, start_worker: Start, sender: Celery, pool: str
) -> None:
    worker = start_worker("--pool", pool, "--concurrency", "4")
    assert ".> results:     celeriac://" in worker.output()
    sent = {sender.send_task("tasks.add", (number, 1)).id for number in range(40)}
    failing = sender.send_task("tasks.fail").id
    reporting = sender.send_task("tasks.report").id
    sender.send_task("tasks.ignored", ignore_result=True)

    taken = wait_for_messages(broker, 85)
    worker.stop()
    assert statuses(taken + bodies(broker)) == {
        **{id: ["STARTED", "SUCCESS"] for id in sent},
        failing: ["STARTED", "FAILURE"],
        reporting: ["STARTED", "PROGRESS", "SUCCESS"],
    }
    assert "Traceback" in next(body["traceback"] for body in taken if body["status"] == "FAILURE")
    assert "process cleanup failed" not in worker.output().lower()


def test_replaced_pool_processes_publish(
    broker: Broker, start_worker: Start, sender: Celery
) -> None:
    start_worker("--concurrency", "2", "--max-tasks-per-child", "3")
    sent = {sender.send_task("tasks.add", (number, 1)).id for number in range(30)}
    taken = wait_for_messages(broker, 60)
    assert statuses(taken) == {id: ["STARTED", "SUCCESS"] for id in sent}


def test_no_result_is_lost_when_celery_reads_results_in_a_worker(
    broker: Broker, start_worker: Start, sender: Celery
) -> None:
    worker = start_worker("--concurrency", "1")
    # If a chain fails in the header of a chord, Celery reads whether its later tasks have failed.
    fail, add = sender.signature("tasks.fail"), sender.signature("tasks.add", (1, 2))
    later = [sender.signature("tasks.add", (number, 1), immutable=True) for number in range(2)]
    header = group(chain(fail, *later, app=sender), add, app=sender)
    chord(header, sender.signature("tasks.add", (3, 4)), app=sender).apply_async()
    taken = wait_for_messages(broker, 6)
    assert sorted(sum(statuses(taken).values(), [])) == ["FAILURE"] * 3 + ["STARTED"] * 2 + [
        "SUCCESS"
    ]
    # Celery 5.7 reads whether a revoked task has run, before the worker that has the task refuses
    # it. Only the latter says that it is revoked.
    sleeping = sender.send_task("tasks.sleep", (2,))
    revoked = sender.send_task("tasks.add", (1, 2))
    wait_until(lambda: "tasks.add[" + revoked.id in worker.output(), "the task to arrive", 10)
    sender.control.revoke(revoked.id)
    wait_until(lambda: "Tasks flagged as revoked" in worker.output(), "the order to arrive", 10)
    found = statuses(wait_for_messages(broker, 3))
    assert found[revoked.id] == ["REVOKED"]
    assert found[sleeping.id] == ["STARTED", "SUCCESS"]
    # Celery reads whether the task of a redelivered message has run.
    again = sender.send_task("tasks.sleep", (60,))
    assert statuses(wait_for_messages(broker, 1)) == {again.id: ["STARTED"]}
    worker.kill()
    worker = start_worker("--concurrency", "1")
    wait_until(lambda: again.id in str(broker.take(RESULTS)), "the task to start again", 20)
    assert "internal error" not in worker.output().lower()


def test_a_refused_result_is_logged_by_the_worker(
    broker: Broker, start_worker: Start, sender: Celery
) -> None:
    fill(broker)
    worker = start_worker("--concurrency", "1", IMPATIENT="1")
    sender.send_task("tasks.add", (1, 2))
    wait_until(lambda: f"`{RESULTS}` is full" in worker.output(), "the error in the log", 20)
    broker.take(RESULTS)
    after = sender.send_task("tasks.add", (1, 2)).id
    wait_until(lambda: broker.depth(RESULTS) > 0, "the next result", 20)
    wait_until(lambda: after in ids(broker), "the next result", 20)


# Reading --------------------------------------------------------------------------------------


def test_reading_without_django_says_what_is_missing(without_django: dict[str, str]) -> None:
    code = (
        "import logging; logging.basicConfig(format='%(message)s')\n"
        "from tasks import app; from celery.exceptions import ImproperlyConfigured\n"
        "for read in (lambda: app.AsyncResult('t').get(), lambda: app.AsyncResult('t').state,\n"
        "             lambda: app.GroupResult.restore('g'), lambda: app.backend.TaskModel):\n"
        "    try: read()\n"
        "    except ImproperlyConfigured as error: assert 'not installed' in str(error)\n"
        "    else: raise AssertionError('it was read')\n"
        "assert app.backend.get_state('t') == 'PENDING'\n"
        "for _ in range(2):\n"
        "    app.AsyncResult('t').forget()\n"
        "    app.tasks['celery.backend_cleanup']()\n"
        "    app.GroupResult('g', []).delete()\n"
    )
    env = without_django | {"BROKER": "amqp://"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=env, check=True, timeout=60, text=True, capture_output=True
    )
    # THEN what cannot be done is said once
    said = [line.partition(": ")[0] for line in done.stderr.splitlines()]
    assert said == [
        "the state of every task is reported as PENDING",
        "rows of results are not deleted when they are forgotten",
        "celery.backend_cleanup deletes no rows",
        "rows of groups are not deleted",
    ], done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, "set DJANGO_SETTINGS_MODULE and call django.setup()"),
        ("SECRET_KEY='x'", "add 'django_celery_results' to INSTALLED_APPS"),
    ],
)
def test_reading_if_django_is_not_set_up(
    tmp_path: Path, settings: str | None, words: str
) -> None:
    code = "import sys; from celery import Celery; app = Celery(backend='celeriac://')\n"
    env = clean_environment() | {"PYTHONPATH": str(tmp_path)}
    if settings:
        (tmp_path / "some_settings.py").write_text(settings)
        env["DJANGO_SETTINGS_MODULE"] = "some_settings"
        code += "import django; django.setup()\n"
    code += "app.AsyncResult('t').state"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert words in done.stderr.splitlines()[-1]
    assert ReadingError.__name__ in done.stderr


CANVAS = """
import time
from celery import chord, group, uuid
from celery.result import AsyncResult, GroupResult
from more_tasks import note, total
from shop.celery import app
from shop.tasks import add, reserve


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


assert type(app.backend).__name__ == "CeleriacBackend", app.backend
assert add.delay(1, 2).get(timeout=30) == 3

# A chord, and one in a group in a chord
assert chord([add.s(n, n) for n in range(3)], total.s()).apply_async().get(timeout=60) == 6
inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
nested = chord([group(add.s(1, 1), inner), add.s(3, 3)], total.s()).apply_async()
assert nested.get(timeout=60) == 14, nested.get()

# A chord whose header fails
errback = AsyncResult(uuid())
body = total.s().on_error(note.s().set(task_id=errback.id))
failing = chord([add.s(1, 1), reserve.s("leek")], body).apply_async()
assert errback.get(timeout=60) == failing.id
wait_until(lambda: failing.state == "FAILURE")
assert type(failing.result).__name__ == "ChordError" and "OutOfStock" in str(failing.result)

# A group is saved, restored in another process as well, and deleted
sent = group(add.s(n, 1) for n in range(3)).apply_async()
sent.save()
assert GroupResult.restore(sent.id).id == sent.id
app.backend._cache.clear()
app.backend._saved_groups.clear()
wait_until(lambda: GroupResult.restore(sent.id))
restored = GroupResult.restore(sent.id)
assert restored == sent and restored.get(timeout=30) == [1, 2, 3]
sent.delete()
assert GroupResult.restore(sent.id) is None

# Forgetting and expiring
done = add.delay(1, 2)
done.get(timeout=30)
done.forget()
assert app.backend.TaskModel.objects.filter(task_id=done.id).count() == 0
app.backend.cleanup()
print("all is well")
"""


def test_chords_and_groups_through_the_daemon(
    python: dict[str, Path],
    broker: Broker,
    databases: Databases,
    make_daemon: Callable[..., Daemon],
    tmp_path: Path,
) -> None:
    database = databases.migrated("postgresql")
    make_daemon(broker.url, database.url).start_consuming()
    (tmp_path / "more_tasks.py").write_text(
        "from celery import shared_task\n\n\n"
        "@shared_task\ndef total(numbers):\n    return sum(numbers)\n\n\n"
        "@shared_task\ndef note(task_id):\n    return task_id\n"
    )
    project = Project(
        python["celery-5.7"],
        database.url,
        broker.url,
        {"RESULT_BACKEND": "celeriac://", "PYTHONPATH": f"{tmp_path}:{PACKAGE}"},
    )
    log = tmp_path / "worker.log"
    worker = project.worker(log, "--include", "more_tasks", result_backend="celeriac://")
    worker.start()
    try:
        worker.wait_for(" ready.")
        assert "all is well" in project.manage("shell", "-c", CANVAS)
    finally:
        worker.kill()


STILL_TO_COME = """
from celery import uuid
from celery.exceptions import TimeoutError
from celery.result import AsyncResult, GroupResult
from shop.celery import app

known = AsyncResult("known")
assert (known.state, known.ready(), known.result) == ("STARTED", False, None), known.state
assert (known.args, AsyncResult("retried").state) == ("('leek',)", "RETRY")
assert not GroupResult(uuid(), [known]).ready()
try:
    known.get(timeout=1)
except TimeoutError:
    print("there is no result yet")
"""


def test_the_outcome_in_an_event_is_not_a_result(
    python: dict[str, Path],
    broker: Broker,
    databases: Databases,
    make_daemon: Callable[..., Daemon],
) -> None:
    database = databases.migrated("sqlite")
    daemon = make_daemon(broker.url, database.url, "--accept-content", f"json,{EVENT}")
    pipeline = Pipeline(broker, database, daemon)
    pipeline.daemon.start_consuming()
    settings = {"RESULT_BACKEND": "celeriac://", "PYTHONPATH": str(PACKAGE)}
    project = Project(python["celery-5.7"], database.url, broker.url, settings)
    event = {"content_type": EVENT, "meta": None, "task_args": "('leek',)"}
    pipeline.broker.publish(
        results.row(results.columns("known", result='"[1, 2]"', **event)),
        results.row(results.columns("retried", status="RETRY", result="not JSON", **event)),
    )
    pipeline.wait_for_rows({"known": "SUCCESS", "retried": "RETRY"})
    assert "no result yet" in project.manage("shell", "-c", STILL_TO_COME)

    broker.publish(results.row(results.columns("known", result="[1, 2]")))
    pipeline.wait_until_handled()
    seen = project.rows()["known"]["async_result"]
    assert (seen["state"], seen["result"]) == ("SUCCESS", "[1, 2]")


# The Django command ---------------------------------------------------------------------------

PROGRAM = """#!{python}
import json, os, sys
names = ("CELERIAC_", "PG", "CELERY_BROKER_URL", "CELERY_RESULT_EXPIRES", "DATABASE_URL")
chosen = {{k: v for k, v in os.environ.items() if k.startswith(names)}}
chosen.pop("CELERIAC_BIN")
print(json.dumps({{"env": chosen, "argv": sys.argv[1:], "pid": os.getpid()}}))
"""

ACCEPT_CONTENT = "CELERIAC_ACCEPT_CONTENT"

#: A password with all characters that have a meaning in a URL.
PASSWORD = "p@ss:w/o?r#d&=%+ é'\""
ENCODED = "p%40ss%3Aw%2Fo%3Fr%23d%26%3D%25%2B%20%C3%A9%27%22"


@pytest.fixture
def manage(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `manage.py celeriac …` with these settings and a program that prints its input."""
    program = tmp_path / "program"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)

    def run(*arguments: str, settings: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "some_settings.py").write_text(
            "SECRET_KEY = 'x'\n"
            "INSTALLED_APPS = ['django_celery_results', 'celeriac']\n"
            "CELERY_BROKER_URL = 'amqp://u:p@rabbit//'\n"
            "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': '/db'}}\n"
            f"PASSWORD = {PASSWORD!r}\n{settings}"
        )
        command = [sys.executable, "-m", "django", "celeriac", *arguments]
        return subprocess.run(
            command,
            env=clean_environment()
            | {"CELERIAC_BIN": str(program), "DJANGO_SETTINGS_MODULE": "some_settings"}
            | {"PYTHONPATH": str(tmp_path)}
            | env,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    return run


def given(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The variables that the program received."""
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not any("p%40ss" in part or PASSWORD in part for part in told["argv"])
    return told["env"]


def test_the_command_passes_everything_on(manage: Any) -> None:
    options = ["--lanes", "4", "--log-level=debug", "--django-database", "default", "--settings"]
    done = manage("run", *options, "some_settings", "--", "-x")
    told = json.loads(done.stdout)
    assert told["argv"] == ["run", "--lanes", "4", "--log-level=debug", "--", "-x"]
    assert told["env"] == {
        "CELERY_BROKER_URL": "amqp://u:p@rabbit:5672/%2F",
        "DATABASE_URL": "sqlite:////db",
    }
    assert json.loads(manage("run", "--help").stdout)["argv"] == ["run", "--help"]
    assert json.loads(manage("--version").stdout)["argv"] == ["--version"]
    assert json.loads(manage("dead", "list").stdout)["argv"] == ["dead", "list"]


def test_variables_of_the_user_take_precedence(manage: Any) -> None:
    theirs = {name: "theirs" for name in ("CELERIAC_BROKER", "CELERIAC_DATABASE")}
    assert given(manage("run", settings="DATABASES = {}", **theirs)) == theirs
    files = {f"{name}_FILE": "/run/secrets/theirs" for name in theirs}
    assert given(manage("run", settings="DATABASES = {}", **files)) == files
    settings = "CELERY_RESULT_BACKEND = 'celeriac://?queue=ours'"
    told = given(manage("run", settings=settings, CELERIAC_RESULTS_QUEUE="theirs"))
    assert told["CELERIAC_RESULTS_QUEUE"] == "theirs"
    # THEN a variable that Celeriac does not own does not
    assert given(manage("run", DATABASE_URL="sqlite:////theirs")) == given(manage("run"))


def test_the_configuration_file_overrides_the_settings(
    python: dict[str, Path], broker: Broker, databases: Databases, tmp_path: Path
) -> None:
    file = tmp_path / "celeriac.toml"
    file.write_text(f"broker = '{broker.url}'\nresults-queue = 'shop.results'\n")
    database, nobody = databases.migrated("sqlite"), "amqp://nobody@127.0.0.1:1//"
    settings = {"RESULT_BACKEND": "celeriac://", "CELERIAC_BIN": str(binary())}
    project = Project(python["celery-5.7"], database.url, nobody, settings)
    daemon = project.daemon(tmp_path / "celeriac.log", "--config", str(file))
    daemon.start()
    try:
        daemon.wait_for(CONSUMING)
    finally:
        daemon.kill()
    assert broker.exists("shop.results")
    assert not broker.exists(RESULTS)


DATABASE_URLS = {
    "everything is encoded": (
        "'ENGINE': 'django.db.backends.postgresql', 'HOST': 'db', 'PORT': 6432, 'NAME': 'a/b',"
        "'USER': 'u@x', 'PASSWORD': PASSWORD",
        f"postgres://u%40x:{ENCODED}@db:6432/a%2Fb",
    ),
    "TLS of PostgreSQL": (
        "'ENGINE': 'django.db.backends.postgresql', 'HOST': 'db', 'NAME': 'n', 'USER': 'u',"
        "'OPTIONS': {'sslmode': 'verify-full', 'sslrootcert': '/c a.pem', 'sslcert': '/c',"
        "'sslkey': '/k', 'options': '-c search_path=shop', 'connect_timeout': 5,"
        "'assume_role': 'writer'}",
        "postgres://u@db/n?sslmode=verify-full&sslrootcert=%2Fc%20a.pem&sslcert=%2Fc&sslkey=%2Fk"
        "&options=-c%20search_path%3Dshop%20-c%20role%3Dwriter",
    ),
    "a socket of PostgreSQL": (
        "'ENGINE': 'django.db.backends.postgresql', 'HOST': '/run/pg', 'PORT': '5433',"
        "'NAME': 'n', 'USER': 'u'",
        "postgres://u@%2Frun%2Fpg:5433/n",
    ),
    "an IPv6 address": (
        "'ENGINE': 'django.db.backends.postgresql', 'HOST': '::1', 'NAME': 'n'",
        "postgres://[::1]/n",
    ),
    "TLS of MySQL": (
        "'ENGINE': 'django.db.backends.mysql', 'HOST': 'db', 'NAME': 'n', 'USER': 'u',"
        "'PASSWORD': PASSWORD, 'OPTIONS': {'charset': 'utf8mb4', 'ssl_mode': 'VERIFY_IDENTITY',"
        "'ssl': {'ca': '/ca', 'cert': '/c', 'key': '/k'}}",
        f"mysql://u:{ENCODED}@db/n?ssl-ca=%2Fca&ssl-cert=%2Fc&ssl-key=%2Fk"
        "&ssl-mode=VERIFY_IDENTITY",
    ),
    "a certificate alone": (
        "'ENGINE': 'django.db.backends.mysql', 'HOST': 'db', 'NAME': 'n', 'USER': 'u',"
        "'OPTIONS': {'ssl': {'ca': '/ca'}}",
        "mysql://u@db/n?ssl-ca=%2Fca&ssl-mode=VERIFY_CA",
    ),
    "TLS that is only wanted": (
        "'ENGINE': 'django.db.backends.mysql', 'HOST': 'db', 'NAME': 'n', 'USER': 'u',"
        "'OPTIONS': {'ssl': True}",
        "mysql://u@db/n?ssl-mode=REQUIRED",
    ),
    "a socket of MySQL": (
        "'ENGINE': 'django.db.backends.mysql', 'HOST': '/run/mysqld.sock', 'NAME': 'n','USER': 'u'",
        "mysql://u@localhost/n?socket=%2Frun%2Fmysqld.sock",
    ),
    "a path of SQLite": (
        "'ENGINE': 'django.db.backends.sqlite3', 'NAME': __import__('pathlib').Path('/a b%/d.db')",
        "sqlite:////a%20b%25/d.db",
    ),
}


@pytest.mark.parametrize("case", DATABASE_URLS)
def test_django_databases_as_urls(manage: Any, case: str) -> None:
    settings, url = DATABASE_URLS[case]
    settings = (
        f"import pymysql; pymysql.install_as_MySQLdb()\nDATABASES = {{'default': {{{settings}}}}}"
    )
    assert given(manage("run", settings=settings))["DATABASE_URL"] == url


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("", "", "mysql://u@localhost/n?socket={}"),
        ("localhost", "", "mysql://u@localhost/n?socket={}"),
        ("localhost", "3307", "mysql://u@localhost:3307/n"),
        ("127.0.0.1", "", "mysql://u@127.0.0.1/n"),
    ],
)
def test_the_usual_socket_of_mysql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, port: str, url: str
) -> None:
    there = tmp_path / "mysql.sock"
    monkeypatch.setattr(program, "MYSQL_SOCKETS", ("/nowhere/mysql.sock", str(there)))
    settings = {"HOST": host, "PORT": port, "NAME": "n", "USER": "u", "PASSWORD": "", "OPTIONS": {}}
    assert program._mysql(settings).partition("?")[0] == url.partition("?")[0]
    there.touch()
    assert program._mysql(settings) == url.format(quote(str(there), safe=""))


@pytest.mark.parametrize(
    ("options", "use_tz", "zone"),
    [
        ("", True, None),
        ("", False, "Europe/Paris"),
        ("'TIME_ZONE': 'Asia/Tokyo'", True, "Asia/Tokyo"),
    ],
)
def test_the_time_zone_of_the_columns(
    manage: Any, options: str, use_tz: bool, zone: str | None
) -> None:
    settings = (
        f"USE_TZ = {use_tz}\nTIME_ZONE = 'Europe/Paris'\nDATABASES['default'].update({{{options}}})"
    )
    assert given(manage("run", settings=settings)).get("CELERIAC_TIME_ZONE") == zone
    postgresql = "\nDATABASES['default'].update(ENGINE='django.db.backends.postgresql', HOST='h')"
    assert "CELERIAC_TIME_ZONE" not in given(manage("run", settings=settings + postgresql))


@pytest.mark.parametrize(
    ("setting", "expires"),
    [
        ("", None),
        ("CELERY_RESULT_EXPIRES = 3600", "3600.000000"),
        ("CELERY_RESULT_EXPIRES = '7200'", "7200.000000"),
        ("CELERY_TASK_RESULT_EXPIRES = 60", "60.000000"),
        ("import datetime\nCELERY_RESULT_EXPIRES = datetime.timedelta(hours=2)", "7200.000000"),
        ("import datetime\nCELERY_RESULT_EXPIRES = datetime.timedelta(0)", "never"),
        ("CELERY_RESULT_EXPIRES = None", "never"),
        ("CELERY_RESULT_EXPIRES = 0", "never"),
    ],
)
@pytest.mark.parametrize("app", [False, True], ids=["settings", "app"])
def test_the_expiry_of_the_project(
    manage: Any, tmp_path: Path, setting: str, expires: str | None, app: bool
) -> None:
    settings = setting
    if app:
        (tmp_path / "an_app.py").write_text(APP)
        settings += "\nimport an_app"
    told = given(manage("run", settings=settings))
    # THEN a configuration file can still override it, and nothing is deleted unless asked for
    assert told.get("CELERY_RESULT_EXPIRES") == expires
    assert not any("CLEANUP" in name or name == "CELERIAC_RESULT_EXPIRES" for name in told)


def test_variables_override_the_project(manage: Any) -> None:
    settings = "CELERY_RESULT_EXPIRES = 3600\nCELERY_ACCEPT_CONTENT = ['json']"
    env = {"CELERIAC_RESULT_EXPIRES": "theirs", ACCEPT_CONTENT: "theirs"}
    told = given(manage("run", settings=settings, **env))
    assert "CELERY_RESULT_EXPIRES" not in told
    assert told[ACCEPT_CONTENT] == "theirs"


def test_an_invalid_expiry_is_an_error(manage: Any) -> None:
    for value in ("'soon'", "-1", "float('inf')", "[]+[1]"):
        done = manage("run", settings=f"CELERY_RESULT_EXPIRES = {value}")
        assert done.returncode == 1 and "set CELERIAC_RESULT_EXPIRES" in done.stderr


def test_the_database_is_where_django_writes_results(manage: Any, tmp_path: Path) -> None:
    (tmp_path / "a_router.py").write_text(
        "class Router:\n"
        "    def db_for_write(self, model, **_):\n"
        "        return 'results' if model.__name__ == 'TaskResult' else None\n"
    )
    settings = (
        "DATABASES['results'] = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': '/results'}\n"
        "DATABASE_ROUTERS = ['a_router.Router']"
    )
    assert given(manage("run", settings=settings))["DATABASE_URL"] == "sqlite:////results"
    named = manage("run", "--django-database=default", settings=settings)
    assert given(named)["DATABASE_URL"] == "sqlite:////db"


APP = """
from celery import Celery
app = Celery("shop", set_as_current=True)
app.set_default()
app.config_from_object("django.conf:settings", namespace="CELERY")
"""

BROKER_URLS = {
    "TLS": (
        "CELERY_BROKER_URL = 'amqp://u@b/'\n"
        "CELERY_BROKER_USE_SSL = {'ca_certs': '/ca', 'certfile': '/c', 'keyfile': '/k'}",
        "amqps://u:guest@b:5671/%2F?ssl_ca_certs=%2Fca&ssl_certfile=%2Fc&ssl_keyfile=%2Fk",
    ),
    "TLS that checks nothing": (
        "import ssl\nCELERY_BROKER_URL = 'amqps://b:1/v'\n"
        "CELERY_BROKER_USE_SSL = {'cert_reqs': ssl.CERT_NONE}",
        "amqps://guest:guest@b:1/v?ssl_cert_reqs=none",
    ),
    "a list": (
        "CELERY_BROKER_URL = ['amqp://u:p%40@one//', 'pyamqp://two/team?heartbeat=7']",
        "amqp://u:p%40@one:5672/%2F;amqp://guest:guest@two:5672/team?heartbeat=7",
    ),
    "another one for publishing": (
        "CELERY_BROKER_READ_URL = 'amqp://r'\nCELERY_BROKER_WRITE_URL = 'amqp://w'",
        "amqp://guest:guest@w:5672/%2F",
    ),
    "that of the results": (
        "CELERY_BROKER_URL = 'redis://r'\n"
        "CELERY_RESULT_BACKEND = 'celeriac://?broker=amqp%3A%2F%2Fu%3Ap%40own%2F%2F'",
        "amqp://u:p@own:5672/%2F",
    ),
}


@pytest.mark.parametrize("case", BROKER_URLS)
def test_the_broker_is_that_of_celery(manage: Any, case: str) -> None:
    settings, url = BROKER_URLS[case]
    assert given(manage("run", settings=settings + APP))["CELERY_BROKER_URL"] == url


def test_the_names_are_those_of_the_result_backend(manage: Any) -> None:
    settings = (
        "CELERY_RESULT_BACKEND = 'celeriac://?queue=q&exchange=e&dead_queue=d"
        "&broker=amqp%3A%2F%2Fown%2F%2F'\n"
    )
    told = given(manage("run", settings=settings + APP))
    assert told == {
        "CELERIAC_EXCHANGE": "e",
        "CELERIAC_RESULTS_QUEUE": "q",
        "CELERIAC_DEAD_QUEUE": "d",
        "CELERY_BROKER_URL": "amqp://guest:guest@own:5672/%2F",
        "DATABASE_URL": "sqlite:////db",
    }
    assert given(manage("run", settings=settings)) == told, "no app is imported"


ACCEPTED = {
    "nothing is set": ("", None),
    "Celery's default": ("CELERY_ACCEPT_CONTENT = ['json']", "json"),
    "what is accepted": (
        "CELERY_ACCEPT_CONTENT = ['yaml', 'application/x-shop']",
        "application/x-shop,json,yaml",
    ),
    "for results": (
        "CELERY_ACCEPT_CONTENT = ['pickle']\nCELERY_RESULT_ACCEPT_CONTENT = ['msgpack']",
        "json,msgpack",
    ),
    "what is written": ("CELERY_RESULT_SERIALIZER = 'pickle'", "json,pickle"),
    "only what is signed": (
        "CELERY_ACCEPT_CONTENT = ['auth']\nCELERY_RESULT_SERIALIZER = 'auth'",
        "auth",
    ),
    "a serializer of the project's own": (
        "from kombu.serialization import register\n"
        "register('shop', repr, eval, 'application/x-shop')\n"
        "CELERY_ACCEPT_CONTENT = ['json', 'shop']",
        "application/x-shop,json",
    ),
}


@pytest.mark.parametrize("app", ["", APP], ids=["without an app", "with an app"])
@pytest.mark.parametrize("case", ACCEPTED)
def test_the_accepted_content_of_the_project(manage: Any, case: str, app: str) -> None:
    settings, accepted = ACCEPTED[case]
    assert given(manage("run", settings=settings + "\n" + app)).get(ACCEPT_CONTENT) == accepted


@pytest.mark.parametrize("app", ["", APP], ids=["without an app", "with an app"])
def test_certificates(manage: Any, app: str) -> None:
    settings = (
        "from pathlib import Path\n"
        "CELERY_SECURITY_CERT_STORE = Path('/certs/*.pem')\n"
        "CELERY_SECURITY_DIGEST = 'sha512'\n"
        "CELERY_SECURITY_KEY = '/key.pem'\n"
        "CELERY_RESULT_SERIALIZER = 'auth'\n"
    )
    # THEN the daemon gets the trusted certificates and not the workers' key
    variables = given(manage("run", settings=settings + app))
    told = {k: v for k, v in variables.items() if k.startswith("CELERIAC_SECURITY")}
    assert told == {
        "CELERIAC_SECURITY_CERT_STORE": "/certs/*.pem",
        "CELERIAC_SECURITY_DIGEST": "sha512",
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("DATABASES['default']['NAME'] = ':memory:'", "set CELERIAC_DATABASE"),
        (
            "DATABASES['default'].update(ENGINE='django.db.backends.postgresql',"
            "OPTIONS={'service': 's'})",
            "`service` from Django: set CELERIAC_DATABASE",
        ),
        (
            "DATABASES['default'].update(ENGINE='django.db.backends.postgresql', HOST='h',"
            "OPTIONS={'target_session_attrs': 'read-write'})",
            "`target_session_attrs` from Django: set CELERIAC_DATABASE",
        ),
        (
            "DATABASES['default'].update(ENGINE='django.db.backends.postgresql', HOST='a,b')",
            "several hosts of PostgreSQL from Django: set CELERIAC_DATABASE",
        ),
        ("CELERY_BROKER_URL = 'redis://:secret@r/0'", "the broker is redis://"),
        ("CELERY_BROKER_URL = None", "set CELERIAC_BROKER"),
        (
            "CELERY_ACCEPT_CONTENT = ['jason']",
            "the serializer 'jason' is registered nowhere: set CELERIAC_ACCEPT_CONTENT",
        ),
        ("CELERY_RESULT_BACKEND = 'celeriac://?oops=1'" + APP, "write one of exchange"),
    ],
)
def test_settings_that_have_no_equivalent(manage: Any, settings: str, words: str) -> None:
    done = manage("run", settings=settings)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_the_program_is_missing(manage: Any) -> None:
    done = manage("run", CELERIAC_BIN="/nowhere")
    assert (done.returncode, done.stderr) == (
        1,
        "CommandError: CELERIAC_BIN names /nowhere, which is no program\n",
    )


def test_python_m_celeriac_is_the_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "celeriac", "check", "--help"],
        env=clean_environment() | {"CELERIAC_BIN": str(program)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["argv"] == ["check", "--help"]
