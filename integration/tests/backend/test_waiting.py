"""Waiting for results of `celeriac://`: with hints, without them, and in every kind of process.

The programs run in a process of a Django project; they write the rows and the hints themselves
(`harness/reader.py`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import amqp
import pytest

from harness import results
from harness.broker import HINTS, RESULTS, Broker
from harness.daemon import Daemon
from harness.database import Database
from harness.environments import INTEGRATION, PACKAGE
from harness.matrix import full
from harness.processes import wait_until
from harness.project import SITE, Project
from harness.proxy import Proxy
from harness.services import RabbitMQ
from harness.users import another_user, broker_rights

#: All versions of Celery; the oldest has Django 3.2 and django-celery-results 2.0.
VERSIONS = ["celery-5.7", "oldest", full("celery-5.6"), full("celery-5.4"), full("celery-5.2")]

PATH = f"{PACKAGE}:{INTEGRATION}"

Run = Callable[..., str]


@pytest.fixture
def run(make_project: Callable[..., Project]) -> Run:
    """Runs a program, which must end well and without a word on its standard error."""

    def run(program: str, version: str = "celery-5.7", **settings: str) -> str:
        return make_project(version, **settings).execute(program)

    return run


@contextmanager
def started(project: Project, program: str) -> Iterator[subprocess.Popen[str]]:
    """A program that the test talks to; it is killed at the end."""
    child = subprocess.Popen(
        [str(project.python), "-c", program],
        cwd=SITE, env=project.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.wait()


# With hints -----------------------------------------------------------------------------------

GET = """
from harness.reader import *
from celery.exceptions import TimeoutError

# A result that is there opens nothing, and is read once
store("there", [1])
with statements() as seen:
    result = app.AsyncResult("there")
    assert result.get(timeout=9) == [1]
assert len(seen) == 1, seen
assert result.get() == [1] and app.AsyncResult("there").get() == [1]
assert "celeriac-hints" not in threads()

# What is read is what `get_task_meta` returns
fail("failed")
metas = app.backend.final_metas(["there", "failed", "missing"])
assert set(metas) == {"there", "failed"}
app.backend._cache.clear()
for task_id, meta in metas.items():
    for other in (meta, app.backend.get_task_meta(task_id)):
        other["result"] = repr(other["result"])
    assert meta == other, (meta, other)
try:
    app.AsyncResult("failed").get(timeout=9)
except ValueError as error:
    assert str(error) == "no"
else:
    raise AssertionError("no error")
assert isinstance(app.AsyncResult("failed").get(propagate=False), ValueError)

# A hint ends a wait, which has read twice
declare()
listen()
clocks = []
for number in range(4):
    helper = later(finish, f"hinted-{number}", seconds=0.1)
    with statements() as seen, Clock() as clock:
        assert app.AsyncResult(f"hinted-{number}").get(timeout=30) == f"hinted-{number}"
    helper.join()
    assert len(seen) <= 2 or clock.seconds > 0.9, seen
    clocks.append(clock.seconds)
assert min(clocks) < 0.5, clocks

# A lost hint costs a second
helper = later(store, "lost")
with Clock() as clock:
    assert app.AsyncResult("lost").get(timeout=30) == 42
helper.join()
assert clock.seconds < 5, clock.seconds

# A hint that comes before its row can be read
def early():
    hint("early")
    time.sleep(0.3)
    store("early")
helper = later(early)
assert app.AsyncResult("early").get(timeout=30) == 42
helper.join()

# What is no hint, and hints for others
def rubbish():
    for body in (b"", b"\\xff", b"null", b"[]", b"{}", b'{"version": 1}',
                 b'{"version": 2, "final": [["good", "SUCCESS"]]}',
                 b'{"version": 1, "final": 7}', b'{"version": 1, "final": [7]}',
                 b'{"version": 1, "final": [[]]}', b'{"version": 1, "final": [[[[]], "SUCCESS"]]}',
                 b"[" * 100_000, b'{"version": 1, "final": [["good", "SUCCESS"]], "more": {}}'):
        publish(body)
    hint("unknown", "there", "good", "good", "good")
    time.sleep(0.3)
    assert is_listening()
    finish("good")
    finish("good")
helper = later(rubbish)
assert app.AsyncResult("good").get(timeout=30) == "good"
helper.join()

# Errors of the callers
for timeout in (0, 0.1):
    try:
        app.AsyncResult("never").get(timeout=timeout)
    except TimeoutError as error:
        assert str(error) == "The operation timed out.", error
    else:
        raise AssertionError("no error")
ticks = []
try:
    never = app.GroupResult("never", [app.AsyncResult("never")])
    never.get(timeout=0.55, interval=0.1, on_interval=lambda: ticks.append(1))
except TimeoutError:
    pass
assert 2 <= len(ticks) <= 6, ticks
told = []
store("told")
assert app.AsyncResult("told").get(on_message=told.append) == 42
assert [meta["task_id"] for meta in told] == ["told"]
assert not waits()
assert not [record for record in logged if record.levelno > logging.INFO], logged
print("all is well")
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_get(run: Run, version: str) -> None:
    assert "all is well" in run(GET, version)


@pytest.mark.parametrize("engine", ["sqlite", "mariadb"])
def test_get_on_the_other_databases(run: Run, engine: str) -> None:
    assert "all is well" in run(GET, engine=engine)


GROUPS = """
from harness.reader import *
from celery.exceptions import TimeoutError
from celery.result import GroupResult, ResultSet

declare()

def results(*names):
    return [app.AsyncResult(name) for name in names]

# Empty groups
assert list(app.backend.iter_native(app.GroupResult("empty", []))) == []
assert app.GroupResult("empty", []).join() == []

# Members end in any order, some before the wait
store("g0", "g0")
names = [f"g{number}" for number in range(5)]
helper = later(lambda: (finish("g3"), finish("g1", "g2"), time.sleep(0.1), finish("g4")))
with statements() as seen:
    assert app.GroupResult("g", results(*names)).get(timeout=30) == names
helper.join()
assert not [sql for sql in seen if " IN (" not in sql], seen

# join, join_native and iter_native of results that are known read nothing more
again = results(*names)
for one in again:
    one.state
app.backend._cache.clear()
with statements() as seen:
    for way in ("join", "join_native", "get"):
        assert getattr(app.GroupResult("g", again), way)(timeout=9) == names
    found = dict(app.GroupResult("g", again).iter_native(timeout=9))
    assert {key: meta["result"] for key, meta in found.items()} == {name: name for name in names}
assert not seen

# Results come as they end
order = []
helper = later(lambda: (finish("i2"), time.sleep(0.5), finish("i0"), time.sleep(0.5), finish("i1")))
for key, meta in app.GroupResult("i", results("i0", "i1", "i2")).iter_native(timeout=30):
    order.append(key)
helper.join()
assert order == ["i2", "i0", "i1"], order

# Callbacks, and errors
called = []
app.GroupResult("g", results(*names)).get(callback=lambda *given: called.append(given))
assert sorted(called) == [(name, name) for name in names]
fail("bad")
for way in ("join", "get"):
    try:
        getattr(app.GroupResult("h", results("g0", "bad")), way)(timeout=9)
    except ValueError:
        pass
    else:
        raise AssertionError("no error")

# Nested groups
inner = app.GroupResult("inner", results("n1", "n2"))
outer = app.GroupResult("outer", [*results("n0"), inner])
helper = later(lambda: (finish("n0", "n1"), time.sleep(0.2), finish("n2")))
assert outer.get(timeout=30) == ["n0", ["n1", "n2"]]
helper.join()
assert outer.ready() and outer.successful()

# get_many
with statements() as seen:
    found = dict(app.backend.get_many(names + ["missing"], max_iterations=1))
assert set(found) == set(names) and len(seen) <= 1
assert ResultSet(results(*names)).completed_count() == 5

# Hundreds of members, in statements of at most 500
many = [f"m{number}" for number in range(1200)]
TaskResult.objects.bulk_create(
    TaskResult(task_id=name, status="SUCCESS", result="1", content_type="application/json",
               content_encoding="utf-8") for name in many)
with statements() as seen:
    assert sum(ResultSet(results(*many)).get(timeout=30)) == 1200
assert len(seen) == 3, len(seen)

# A member that never ends
try:
    app.GroupResult("g", results("g0", "never")).get(timeout=0.5)
except TimeoutError:
    pass
else:
    raise AssertionError("no error")
stopped = app.GroupResult("g", results("g0", "never")).iter_native(timeout=30)
assert next(stopped)[0] == "g0"
stopped.close()
assert not waits()

# collect
store("leaf", "leaf")
store("root", "root", meta='{"children": [[["leaf", null], null]]}')
assert [value for _, value in app.AsyncResult("root").collect()] == ["root", "leaf"]
print("all is well")
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_groups(run: Run, version: str) -> None:
    assert "all is well" in run(GROUPS, version)


THEN = """
import gc, socket
from harness.reader import *
from celeriac import waiting

declare()
listen()
consumer = app.backend.result_consumer
called = []

# A callback is called while the process waits for something else
before, after = app.AsyncResult("before"), app.AsyncResult("after")
before.then(lambda result: called.append(result.id))
store("before")
after.then(lambda result: called.append(result.id))
helper = later(lambda: (finish("after"), time.sleep(0.3), finish("other")), seconds=1.2)
assert app.AsyncResult("other").get(timeout=30) == "other"
helper.join()
assert sorted(called) == ["after", "before"], called
assert before.get() == 42 and called.count("before") == 1
assert not consumer._watched and not consumer._kept

# The same, by Celery's own loop
result = app.AsyncResult("drained")
result.then(lambda result: called.append(result.id))
helper = later(finish, "drained")
end = time.monotonic() + 30
while "drained" not in called and time.monotonic() < end:
    try:
        consumer.drain_events(timeout=1)
    except socket.timeout:
        pass
helper.join()
assert called.count("drained") == 1

# The callback of a result that is waited for, called once
result = app.AsyncResult("own")
result.then(lambda result: called.append(result.id))
helper = later(finish, "own")
assert result.get(timeout=30) == "own"
helper.join()
assert called.count("own") == 1

# A group knows when it is complete
group = app.GroupResult("group", [app.AsyncResult("a"), app.AsyncResult("b")])
group.then(lambda result: called.append("group"))
helper = later(finish, "a", "b")
group.get(timeout=30)
helper.join()
assert called.count("group") == 1

# A result with a callback that cannot be read does not disturb others
broken = app.AsyncResult("broken")
broken.then(lambda result: called.append(result.id))
store("broken", content_encoding="binary")
helper = later(finish, "whole", seconds=1.5)
assert app.AsyncResult("whole").get(timeout=30) == "whole"
helper.join()
assert "broken" not in called and "broken" not in consumer._watched
assert any("broken" in record.getMessage() for record in logged)
del broken

# Groups that nobody waits for are not kept for ever
waiting.KEPT = 10
for number in range(100):
    members = [app.AsyncResult(f"{number}-{member}") for member in range(3)]
    app.GroupResult(str(number), members)
del members
gc.collect()
assert len(consumer._kept) <= 10 and len(consumer._watched) <= 12, len(consumer._watched)
print("all is well")
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_then(run: Run, version: str) -> None:
    assert "all is well" in run(THEN, version)


THREADS = """
from harness.reader import *

declare()
COUNT, got, counts = 30, {}, []

def get(number):
    with statements() as seen:
        got[number] = app.AsyncResult(f"t{number % 20}").get(timeout=60)
    counts.append(len(seen))
    connections.close_all()

listen()
waiting = [threading.Thread(target=get, args=(number,)) for number in range(COUNT)]
for thread in waiting:
    thread.start()
wait_until(lambda: waits() == COUNT, "the waits", 60)
assert sorted(threads()).count("celeriac-hints") == 1
for number in range(20):
    finish(f"t{number}")
for thread in waiting:
    thread.join()
assert got == {number: f"t{number % 20}" for number in range(COUNT)}
assert not waits()

# The connection is closed some time after the last wait, and opened again
module.IDLE_SECONDS = 0.5
wait_until(lambda: "celeriac-hints" not in threads(), "the end of the thread", 30)
assert not is_listening() and hub()._listener is None
listen()
helper = later(finish, "again")
assert app.AsyncResult("again").get(timeout=30) == "again"
helper.join()
print("all is well")
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_threads(run: Run, version: str) -> None:
    assert "all is well" in run(THREADS, version)


STOPPED = """
from harness.reader import *

module.HEARTBEAT_SECONDS = 300
declare()
listen()
heard = set()
deliver = hub()._listener._deliver
hub()._listener._deliver = lambda ids: (heard.update(ids), deliver(ids))

def say():
    wait_until(waits, "the wait", 30)
    print("waiting", flush=True)

threading.Thread(target=say).start()
assert app.AsyncResult("target").get(timeout=300) == 42
print("got", flush=True)
wait_until(lambda: "last" in heard, "the last hint", 60)
assert "target" not in heard and is_listening()
helper = later(finish, "after")
assert app.AsyncResult("after").get(timeout=30) == "after"
helper.join()
print("all is well", flush=True)
"""


def test_a_full_queue_drops_hints(
    make_project: Callable[..., Project],
    make_daemon: Callable[..., Daemon],
    rabbitmq: RabbitMQ,
    broker: Broker,
) -> None:
    project = make_project()
    database = Database(project.env["DATABASE_URL"])
    make_daemon(broker.url, database.url).start_consuming()
    vhost = broker.url.rpartition("/")[2]
    lengths = []

    def length() -> int:
        columns = ("name", "messages", "message_bytes")
        listed = rabbitmq.control("list_queues", "--no-table-headers", "-p", vhost, *columns)
        [line] = [line for line in listed.splitlines() if line.startswith("celeriac.waiting.")]
        messages, size_bytes = map(int, line.split()[1:])
        lengths.append((messages, size_bytes))
        return messages

    def fill() -> int:
        ids = [[f"other-{number}-{'x' * 200}", "SUCCESS"] for number in range(300)]
        body = json.dumps({"version": 1, "final": ids})
        message = amqp.Message(body, content_type="application/json")
        with broker.channel() as channel:
            for _ in range(50):
                channel.basic_publish(message, HINTS, f"{RESULTS}.final")
        return length()

    with started(project, STOPPED) as child:
        assert child.stdout.readline() == "waiting\n"
        # GIVEN a waiting process that stands still, and whose sockets are full
        child.send_signal(signal.SIGSTOP)
        wait_until(fill, "messages in the queue", 60)
        # WHEN its own task ends, and thousands of others after it
        broker.publish(results.result("target"))
        wait_until(lambda: "target" in database.statuses(), "the row", 60)
        others = [f"{number:0255}" for number in range(6000)]
        broker.publish_many((RESULTS, results.result(other)) for other in others)
        wait_until(lambda: length() and database.count() >= len(others) + 1, "the rows", 120, 0.5)
        broker.publish(results.result("last"))
        wait_until(lambda: "last" in database.statuses(), "the last row", 60)
        # THEN its queue is bounded, and it soon has the result although the hint was dropped
        assert length()
        assert all(count <= 1000 and size <= 1024 * 1024 for count, size in lengths), lengths
        began = time.monotonic()
        child.send_signal(signal.SIGCONT)
        assert child.stdout.readline() == "got\n", child.communicate()
        seconds = time.monotonic() - began
        assert seconds < 5, seconds
        assert child.communicate(timeout=110) == ("all is well\n", "")


# Without hints --------------------------------------------------------------------------------

POLL = """
from harness.reader import *

helper = later(store, "t1", seconds=1)
with statements() as seen, Clock() as clock:
    assert app.AsyncResult("t1").get(timeout=60) == 42
helper.join()
assert clock.seconds < 10, clock.seconds
assert 3 <= len(seen) <= 20 + clock.seconds * 3, len(seen)
helper = later(store, "t2", seconds=0.5)
assert app.AsyncResult("t2").get(timeout=60, interval=0.05) == 42
helper.join()
told = [record.getMessage() for record in logged]
assert len(told) == 1 and "no hints" in told[0] and "secret" not in told[0], told
print(logged[0].levelname, told[0])
"""


def test_no_daemon_that_publishes_hints(run: Run) -> None:
    assert "INFO" in run(POLL)


@pytest.mark.parametrize(
    "url", ["amqp://guest:secret@127.0.0.1:1//", "redis://:secret@127.0.0.1:1/0", "memory://"]
)
def test_no_rabbitmq(run: Run, url: str) -> None:
    run(POLL, CELERY_BROKER_URL=url)


def test_missing_rights(rabbitmq: RabbitMQ, broker: Broker, run: Run) -> None:
    broker.declare_hints()
    for configure, write, read in (("^$", "^$", "^$"), (".*", ".*", "^$"), ("^$", ".*", ".*")):
        with another_user(rabbitmq, broker, configure, write, read) as url:
            assert "WARNING" in run(POLL, CELERY_BROKER_URL=url, HINTS_URL=broker.url)


def test_the_rights_that_are_enough(rabbitmq: RabbitMQ, broker: Broker, run: Run) -> None:
    broker.declare_hints()
    with another_user(rabbitmq, broker, *broker_rights("web")) as url:
        program = (
            "from harness.reader import *\nlisten()\nhelper = later(finish, 't')\n"
            "assert app.AsyncResult('t').get(timeout=30) == 't'\nhelper.join()"
        )
        run(program, CELERY_BROKER_URL=url, HINTS_URL=broker.url)


BREAK = """
import sys
from harness.reader import *

declare()
listen()
got = []

def get(number):
    got.append(app.AsyncResult(f"t{number}").get(timeout=100))
    connections.close_all()

waiting = [threading.Thread(target=get, args=(number,)) for number in range(20)]
for thread in waiting:
    thread.start()
wait_until(lambda: waits() == 20, "the waits", 60)
print("waiting", flush=True)
sys.stdin.readline()
wait_until(lambda: not is_listening(), "the end of the connection", 60)
for number in range(10):
    store(f"t{number}")
wait_until(lambda: len(got) == 10, "the first results", 60)
print("polling", flush=True)
sys.stdin.readline()
wait_until(is_listening, "another connection", 90)
finish(*(f"t{number}" for number in range(20)))
for thread in waiting:
    thread.join()
told = [record.getMessage() for record in logged]
assert len(told) == 2 and "no hints" in told[0] and "again" in told[1], told
print("all is well", flush=True)
"""


@pytest.mark.parametrize("fault", ["refuse", "close", "swallow"])
def test_the_broker_goes_while_threads_wait(
    make_project: Callable[..., Project], rabbitmq: RabbitMQ, broker: Broker, fault: str
) -> None:
    """The connection is cut, closed by an administrator, or half open."""
    with Proxy(broker.url, 5672) as proxy:
        program = BREAK
        if fault == "swallow":
            program = BREAK.replace("\n\ndeclare", "\nmodule.HEARTBEAT_SECONDS = 2\ndeclare")
        project = make_project(HINTS_URL=broker.url)
        project.env["CELERY_BROKER_URL"] = proxy.url
        with started(project, program) as child:
            assert child.stdout.readline() == "waiting\n"
            if fault == "close":
                vhost = broker.url.rpartition("/")[2]
                rabbitmq.control("close_all_connections", "--vhost", vhost, "a test")
                proxy.refuse()
            else:
                getattr(proxy, fault)()
            child.stdin.write("\n")
            child.stdin.flush()
            said = child.stdout.readline()
            if fault != "swallow":
                proxy.accept()
            output, errors = child.communicate("\n", timeout=110)
            assert (said, output, errors) == ("polling\n", "all is well\n", "")


AWAY = """
import asyncio, celeriac, sys
from harness.reader import *
from celery.exceptions import TimeoutError
from django.db import InterfaceError, OperationalError, transaction

AWAY = (InterfaceError, OperationalError)

def ask(what):
    print(what, flush=True)
    sys.stdin.readline()

def get(task_id, timeout=60):
    try:
        return app.AsyncResult(task_id).get(timeout=timeout)
    except Exception as error:
        return error

def together(count, timeout=60):
    waits = [celeriac.aget(app.AsyncResult(f"a{n}"), timeout) for n in range(count)]
    async def main():
        return await asyncio.gather(*waits, return_exceptions=True)
    return asyncio.run(main())

def at_the_hint():
    wait_until(waits, "a wait", 30)
    ask("refuse")
    hint("t0")

declare()
listen()
for number in range(4):
    store(f"t{number}")
    store(f"a{number}")
TaskResult.objects.filter(task_id="t0").delete()

# The database goes while something waits
helper = threading.Thread(target=at_the_hint)
helper.start()
assert isinstance(get("t0"), AWAY)
helper.join()
assert isinstance(get("t1"), AWAY)
assert [isinstance(found, AWAY) for found in together(4)] == [True] * 4
assert isinstance(get("t1", timeout=0), AWAY)
ask("accept")
assert get("t1") == 42 and together(4) == [42] * 4

# The same with retries: the timeout counts, and the wait goes on when the database is back
app.backend.always_retry = True
helper = threading.Thread(target=at_the_hint)
helper.start()
error = get("t0", timeout=2)
helper.join()
assert isinstance(error, TimeoutError) and isinstance(error.__cause__, AWAY)
assert str(error).startswith("The operation timed out: "), error
app.backend.max_retries = 2
assert isinstance(get("t2"), AWAY)
app.backend.max_retries = float("inf")
assert [type(found) for found in together(2, timeout=1)] == [TimeoutError] * 2
helper = later(ask, "accept", seconds=0.5)
assert get("t2") == 42
helper.join()

# A transaction is lost with its connection
with transaction.atomic():
    assert get("t3") == 42
    ask("cut")
    assert isinstance(get("t0"), AWAY)
    transaction.set_rollback(True)
connection.close()
transaction.set_autocommit(False)
assert get("t1") == 42
ask("cut")
assert isinstance(get("t0"), AWAY) and isinstance(get("t0"), AWAY)
connection.close()
app.backend._cache.clear()
assert get("t3") == 42
assert len([record for record in logged if "tried again" in record.getMessage()]) == 1, logged
assert not waits()
print("all is well", flush=True)
"""


@pytest.mark.parametrize(("engine", "port"), [("postgresql", 5432), full("mariadb", 3306)])
def test_the_database_goes_while_something_waits(
    make_project: Callable[..., Project], engine: str, port: int
) -> None:
    project = make_project(engine=engine)
    with Proxy(project.env["DATABASE_URL"], port) as proxy:
        project.env["DATABASE_URL"] = proxy.url
        with started(project, AWAY) as child:
            for fault in ("refuse", "accept", "refuse", "accept", "cut", "cut"):
                said = child.stdout.readline()
                assert said == f"{fault}\n", (fault, said, child.communicate())
                getattr(proxy, fault)()
                child.stdin.write("\n")
                child.stdin.flush()
            output, errors = child.communicate(timeout=110)
            assert output == "all is well\n", errors


EXPLAIN = """
from harness.reader import *

try:
    app.AsyncResult("t").get(timeout=1)
except app.AsyncResult.TimeoutError as error:
    print(error)
"""


def test_a_timeout_says_that_nobody_consumes(run: Run, broker: Broker) -> None:
    missing = f"The operation timed out: the results queue `{RESULTS}` does not exist; start"
    assert missing in run(EXPLAIN)
    broker.declare(RESULTS)
    nobody = f"The operation timed out: nobody consumes the results queue `{RESULTS}`, in which "
    assert nobody + "0 messages wait; start `celeriac run`." in run(EXPLAIN)
    with broker.channel() as channel:
        channel.basic_consume(RESULTS)
        assert run(EXPLAIN) == "The operation timed out.\n"
    assert run(EXPLAIN, CELERY_BROKER_URL="amqp://127.0.0.1:1//") == "The operation timed out.\n"


# Interruptions and processes ------------------------------------------------------------------

INTERRUPT = """
import gc, signal, sys
from harness.reader import *
from celery.exceptions import SoftTimeLimitExceeded

declare()
listen()

def interrupt(error):
    def handler(*_):
        raise error
    signal.signal(signal.SIGALRM, handler)
    for seconds in (0.001, 0.003, 0.01, 0.02, 0.1, 1.1):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            app.AsyncResult("never").get(timeout=30)
        except error:
            pass
        else:
            raise AssertionError("it was not interrupted")
        assert not waits()
        connections.close_all()  # psycopg does not know the end of an interrupted statement
        helper = later(finish, f"{error.__name__}-{seconds}", seconds=0.05)
        app.AsyncResult(f"{error.__name__}-{seconds}").get(timeout=30)
        helper.join()

interrupt(KeyboardInterrupt)
interrupt(SoftTimeLimitExceeded)
assert is_listening() and sorted(threads()).count("celeriac-hints") == 1

# At each line of our own code in turn
from celeriac import backend, hints as hints_module, waiting
lines = {module.__file__: open(module.__file__).read().splitlines()
         for module in (backend, hints_module, waiting)}
steps = 0
while steps < 2000:
    left = steps
    def trace(frame, event, _):
        global left
        # Unlike a signal, a trace function can raise between the end of a `with` block and its
        # lock, and at `try`.
        code = frame.f_code
        if code.co_filename not in lines or code.co_name in ("hints", "cancel_for"):
            return None
        if event == "line" and lines[code.co_filename][frame.f_lineno - 1].strip() != "try:":
            left -= 1
            if left == -1:
                raise SoftTimeLimitExceeded
        return trace
    sys.settrace(trace)
    try:
        app.AsyncResult("never").get(timeout=0.02)
    except (SoftTimeLimitExceeded, app.AsyncResult.TimeoutError):
        pass
    finally:
        sys.settrace(None)
    if waits():
        gc.collect()  # the exception was raised before the wait was taken out
    assert waits() == 0, steps
    steps += 1
    if left >= 0:
        break
assert steps > 30, steps
helper = later(finish, "after")
assert app.AsyncResult("after").get(timeout=30) == "after"
helper.join()
print("all is well")
"""


def test_an_interrupted_wait_leaves_nothing(run: Run) -> None:
    assert "all is well" in run(INTERRUPT)


FORK = """
import os, sys
from harness.reader import *

declare()
listen()
called = []
result = app.AsyncResult("parent's")
result.then(lambda _: called.append("child" if os.getpid() != parent else "parent"))
parent, listener = os.getpid(), hub()._listener
connections.close_all()
if not (child := os.fork()):
    assert not waits() and not is_listening() and hub()._listener is None
    listen()
    assert hub()._listener is not listener
    finish("parent's")
    helper = later(finish, "child's")
    assert app.AsyncResult("child's").get(timeout=30) == "child's"
    helper.join()
    assert not called
    sys.exit()  # with all that an interpreter does at its end
assert os.waitpid(child, 0)[1] == 0
assert is_listening() and hub()._listener is listener
helper = later(finish, "other", seconds=1.2)
assert app.AsyncResult("other").get(timeout=30) == "other"
helper.join()
assert called == ["parent"] and hub()._listener is listener
print("all is well")
"""


@pytest.mark.parametrize("version", ["celery-5.7", full("oldest")])
def test_a_forked_child_has_its_own_connection(run: Run, version: str) -> None:
    assert "all is well" in run(FORK, version)


UWSGI = """
import sys, types
sys.modules["uwsgi"] = types.SimpleNamespace(opt={"master": b"true"})
from harness.reader import *

declare()
for number in range(2):
    helper = later(finish, f"t{number}")
    with Clock() as clock:
        assert app.AsyncResult(f"t{number}").get(timeout=30) == f"t{number}"
    helper.join()
    assert "celeriac-hints" not in threads()
    assert not is_listening() and hub()._listener is None
print("all is well")
"""


def test_a_process_without_threads(run: Run) -> None:
    """As uWSGI starts it; the waiting thread receives the hints."""
    assert "all is well" in run(UWSGI)


GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent
from harness.reader import *

declare()
listen()
waiting = [gevent.spawn(app.AsyncResult(f"t{number}").get, timeout=30) for number in range(20)]
while waits() < 20:
    gevent.sleep(0.01)
try:
    with gevent.Timeout(0.3):
        app.AsyncResult("never").get()
except gevent.Timeout:
    pass
assert waits() == 20
finish(*(f"t{number}" for number in range(20)))
assert [one.get() for one in waiting] == [f"t{number}" for number in range(20)]
group = app.GroupResult("g", [app.AsyncResult(f"t{number}") for number in range(5)])
assert group.get(timeout=9) == [f"t{number}" for number in range(5)]
print("all is well")
"""


def test_gevent(run: Run) -> None:
    # psycopg waits for the server without giving way to other greenlets, PyMySQL does not.
    assert "all is well" in run(GEVENT, engine="mariadb")


ASYNC = """
import asyncio
import celeriac
from harness.reader import *
from celery.result import EagerResult

declare()

async def main():
    # Without and with a connection, hundreds at once
    names = [f"a{number}" for number in range(200)]
    gathered = asyncio.gather(*(celeriac.aget(app.AsyncResult(name), 60) for name in names))
    while waits() < 200:
        await asyncio.sleep(0.01)
    before = threading.active_count()
    assert before < 10, threads()
    for _ in range(20):
        await asyncio.sleep(0.01)   # the loop is not blocked
    await asyncio.to_thread(lambda: (finish(*names), connections.close_all()))
    assert await gathered == names

    # Groups, errors, what is known already
    group = app.GroupResult("g", [app.AsyncResult("a1"), app.AsyncResult("a2")])
    assert await celeriac.aget(group, 9) == ["a1", "a2"]
    assert await celeriac.aget(EagerResult("e", 7, "SUCCESS")) == 7
    await asyncio.to_thread(lambda: (fail("bad"), connections.close_all()))
    try:
        await celeriac.aget(app.AsyncResult("bad"), 9)
    except ValueError:
        pass
    else:
        raise AssertionError("no error")
    assert isinstance(await celeriac.aget(app.AsyncResult("bad"), 9, propagate=False), ValueError)
    try:
        await celeriac.aget(app.AsyncResult("never"), timeout=0.3)
    except app.AsyncResult.TimeoutError:
        pass
    else:
        raise AssertionError("no error")

    # Cancelled
    task = asyncio.create_task(celeriac.aget(app.AsyncResult("never")))
    while not waits():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    else:
        raise AssertionError("not cancelled")
    assert not waits()
    await asyncio.sleep(0.1)

asyncio.run(main())
print("all is well")
"""


@pytest.mark.parametrize("version", ["celery-5.7", full("oldest")])
def test_aget(run: Run, version: str) -> None:
    assert "all is well" in run(ASYNC, version)


TOGETHER = """
import asyncio
import celeriac
from harness.reader import *
from asgiref.sync import ThreadSensitiveContext
from django.db.backends.utils import CursorWrapper

reads = []
execute = CursorWrapper.execute

def note(self, sql, params=None):
    if sql.startswith("SELECT"):
        reads.append(sql)
    return execute(self, sql, params)

async def in_a_thread(name):
    return await celeriac.aget(app.AsyncResult(name), 60)

async def in_a_request(name):
    # As Django's handler for ASGI does, with a thread for each request
    async with ThreadSensitiveContext():
        return await in_a_thread(name)

async def main(prefix, one):
    names = [f"{prefix}{number}" for number in range(50)]
    gathered = asyncio.gather(*(one(name) for name in names))
    while waits() < 50 or not reads:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(lambda: (finish(*names), connections.close_all()))
    assert await gathered == names

declare()
listen()
CursorWrapper.execute = note
for prefix, one in ("a", in_a_thread), ("r", in_a_request):
    reads.clear()
    with Clock() as clock:
        asyncio.run(main(prefix, one))
    own = [sql for sql in reads if " IN (" in sql]
    assert len(own) <= 10 + clock.seconds * 3, (clock.seconds, len(own))
print("all is well")
"""


def test_coroutines_read_together(run: Run) -> None:
    assert "all is well" in run(TOGETHER)


# Eager tasks, and workers without Django ------------------------------------------------------

EAGER = """
import unittest, warnings
from harness.reader import *
from django.test import TestCase
from shop.tasks import add, reserve

app.conf.task_always_eager = app.conf.task_store_eager_result = True


class EagerTest(TestCase):
    def runTest(self):
        result = add.delay(1, 2)
        assert TaskResult.objects.get(task_id=result.id).result == "3"
        assert app.AsyncResult(result.id).get(timeout=9) == 3
        failed = reserve.delay("leek")
        assert TaskResult.objects.get(task_id=failed.id).status == "FAILURE"


# Up to Celery 5.4, reading warns although results are stored
warnings.simplefilter("ignore", RuntimeWarning)
outcome = unittest.TestResult()
unittest.TestSuite([EagerTest()]).run(outcome)
assert outcome.wasSuccessful() and outcome.testsRun == 1, outcome.errors + outcome.failures
assert TaskResult.objects.count() == 0, "the transaction was rolled back"
print("all is well")
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_eager_results_are_in_the_callers_transaction(run: Run, version: str) -> None:
    url = "amqp://nobody:secret@127.0.0.1:1//"
    assert "all is well" in run(EAGER, version, CELERY_BROKER_URL=url)


TASKS = """
from celery import shared_task
from celery.result import allow_join_result
from shop.celery import app
from shop.tasks import add


@shared_task
def wait_for(left, right):
    with allow_join_result():
        return add.delay(left, right).get(timeout=60)
"""

WITHIN = """
from harness.reader import *
from waiting_tasks import wait_for

# A waiting task occupies one of the worker's three processes
for _ in range(3):
    found = [wait_for.delay(number, 1) for number in range(2)]
    assert [one.get(timeout=90) for one in found] == [1, 2]
print("all is well")
"""


def test_a_task_waits_in_a_prefork_worker(
    make_project: Callable[..., Project], make_daemon: Any, broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "waiting_tasks.py").write_text(TASKS)
    project = make_project(PYTHONPATH=f"{PATH}:{tmp_path}")
    make_daemon(broker.url, project.env["DATABASE_URL"]).start_consuming()
    options = ("--concurrency", "3", "--include", "waiting_tasks", "--prefetch-multiplier", "1")
    worker = project.worker(tmp_path / "worker.log", *options, result_backend="celeriac://")
    worker.start()
    try:
        worker.wait_for(" ready.")
        assert "all is well" in project.execute(WITHIN)
    finally:
        worker.kill()
