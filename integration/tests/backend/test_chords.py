"""Chords of `celeriac://`: with a daemon and workers, the body runs once for each chord."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from harness import results
from harness.broker import DEAD, RESULTS, Broker, Message
from harness.daemon import Daemon
from harness.command import fail, succeed
from harness.database import TABLE, Database, Databases
from harness.matrix import full, full_except
from harness.probe import Probe
from harness.processes import Failure, Process, wait_until
from harness.project import Project
from harness.services import RabbitMQ

VERSIONS = ["celery-5.7", full("celery-5.6"), full("celery-5.4"), full("celery-5.2")]

KEY = f"{RESULTS}.chords"

PRELUDE = """
import json, os, sys, time
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
django.setup()
from celery import chain, chord, group, uuid
from celery.exceptions import ChordError
from celery.signals import before_task_publish
from shop.celery import app, send_results_to_celeriac
from shop.tasks import add, add_member, record, reserve, total, wait_for_file

before_task_publish.disconnect(send_results_to_celeriac)
path = {path!r}
body = record.s(path)

def value(result):
    try:
        return result.get(timeout=60)
    except Exception as error:
        return type(error).__name__
"""


class Running:
    """A daemon and a worker of a project."""

    def __init__(
        self, project: Project, broker: Broker, daemon: Daemon, probe: Probe, folder: Path
    ) -> None:
        self.project = project
        self.broker = broker
        self.daemon = daemon
        self.probe = probe
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.touch()
        self.workers: list[Process] = []
        self.database = Database(project.env["DATABASE_URL"])

    def start_worker(self, *options: str) -> Process:
        log = self.folder / f"worker-{len(self.workers)}.log"
        name = f"worker-{len(self.workers)}@test"
        worker = self.project.worker(
            log, "--hostname", name, *options, result_backend="celeriac://"
        )
        self.workers.append(worker)
        worker.start()
        worker.wait_for(" ready.")
        return worker

    def execute(self, program: str) -> Any:
        """What a program prints last, as JSON."""
        prelude = PRELUDE.replace("{path!r}", repr(str(self.runs)))
        output = self.project.execute(prelude + program)
        return json.loads(output.splitlines()[-1])

    def bodies(self) -> Counter[str]:
        """How often each body has run."""
        return Counter(self.runs.read_text().split())

    def wait_for_chords(self) -> None:
        """Waits until no chord is open."""
        query = (
            "select group_id, unlock_at, unlocks, problem from celeriac_chord where done_at is null"
        )
        try:
            wait_until(lambda: not self.database.query(query), "chords to end", 45)
        except Failure as failure:
            failure.add_note(f"open chords: {self.database.query(query)}")
            raise

    def unlocks(self) -> tuple[float, float]:
        """How many unlock messages were sent, and how many of them again."""
        names = ("chord_unlocks_total", "chord_unlocks_repeated_total")
        sent, again = (self.probe.value(name) for name in names)
        return sent or 0.0, again or 0.0

    def polls(self) -> int:
        """How often a worker has looked at a chord that was not complete."""
        return sum(
            line.count("celery.chord_unlock") and "retry: " in line.lower()
            for worker in self.workers
            for line in worker.output().splitlines()
        )


Start = Callable[..., Running]


@pytest.fixture
def start(
    make_project: Callable[..., Project],
    make_daemon: Callable[..., Daemon],
    broker: Broker,
    tmp_path: Path,
) -> Iterator[Start]:
    started: list[Running] = []

    def start(version: str = "celery-5.7", engine: str = "postgresql", **settings: str) -> Running:
        project = make_project(version, engine, **settings)
        probe = Probe()
        daemon = make_daemon(broker.url, project.env["DATABASE_URL"], *probe.options)
        daemon.start_consuming()
        running = Running(project, broker, daemon, probe, tmp_path)
        started.append(running)
        running.start_worker()
        return running

    yield start
    for running in started:
        for worker in running.workers:
            worker.kill()


def accepts_chords(broker: Broker) -> bool:
    """Whether the daemon has bound the queue for chords."""
    with broker.channel() as channel:
        returned: list[object] = []
        channel.events["basic_return"].add(lambda *details: returned.append(details))
        body = json.dumps({"version": 1, "task_id": "nothing"}).encode()
        message = results.raw("nothing", body, content_type=results.CHORD_MEMBER)
        channel.basic_publish(message.to_amqp(), "celeriac", KEY, mandatory=True)
        return not returned


FORMS = """
import celery

sent = {
    "plain": chord([add.s(number, 1) for number in range(10)], body),
    "one": chord([add.s(1, 1)], body),
    "generator": chord((add.s(number, 1) for number in range(3)), body),
    "chains": chord([chain(add.s(1, 1), add.s(1)), add.s(5, 5)], body),
    "groups": chord([group(add.s(1, 1), add.s(2, 2)), add.s(3, 3)], body),
    "nested": chord([chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(3, 3)], body),
    "chain": chain(group(add.s(1, 1), add.s(2, 2)), total.s(), body),
    "group": chain(group(add.s(1, 1), add.s(2, 2)), group(body, body)),
    "chord": chord([add.s(1, 1), add.s(2, 2)], chord([total.s(), total.s()], body)),
    "ignored": chord([add.si(1, 1).set(ignore_result=True), add.s(2, 2)], body),
    "all ignored": chord([add.si(n, 1).set(ignore_result=True) for n in range(3)], body),
    "immutable": chord([add.s(1, 1), add.s(2, 2)], record.si("only", path)),
    "large": chord([add.s("x" * 60_000, "y"), add.s("z", "z")], body),
    "many": chord([add.s(number, 1) for number in range(700)], body),
    "added": chord([add_member.s(7), add.s(1, 1)], body),
    "fails": chord([add.s(1, 1), reserve.s("book")], body),
}
if celery.VERSION < (5, 3):  # whose headers cannot be generators
    del sent["generator"]
sent = {name: signature.apply_async() for name, signature in sent.items()}
empty = chord([], body).apply_async()
twice = add.s(3, 4).set(task_id=uuid())
sent["twice"] = chord([twice, twice], body).apply_async()
found = {name: value(result) for name, result in sent.items()}
found["large"] = [len(text) for text in found["large"]]
found["many"] = sum(found["many"])
print(json.dumps(found))
"""

FOUND = {
    "plain": list(range(1, 11)),
    "one": [2],
    "generator": [1, 2, 3],
    "chains": [3, 10],
    # The order in which Celery unrolls groups.
    "groups": [4, 2, 6],
    "nested": [6, 6],
    "chain": 6,
    "group": [[2, 4], [2, 4]],
    "chord": [6, 6],
    "ignored": [2, 4],
    "all ignored": [1, 2, 3],
    "immutable": "only",
    "large": [60_001, 2],
    "many": sum(range(701)),
    "added": [7, 2, 8],
    "fails": "OutOfStock",
    "twice": [7, 7],
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_every_form(start: Start, version: str, engine: str) -> None:
    running = start(version, engine)
    wait_until(lambda: accepts_chords(running.broker), "chords to be accepted", 15)
    found = running.execute(FORMS)
    wanted = dict(FOUND)
    if version == "celery-5.2":
        del wanted["generator"]
    assert found == wanted
    # THEN each body has run once, and no worker has polled
    running.wait_for_chords()
    bodies = running.bodies()
    assert set(bodies.values()) == {1}, bodies
    assert len(bodies) == len(wanted) + 1
    sent, again = running.unlocks()
    assert again == 0
    assert sent > len(wanted)
    assert running.polls() == 0
    assert running.database.query("select count(*) from celeriac_chordmember") == [(0,)]


def messages_about(broker: Broker) -> Callable[[], list[Message]]:
    """Keeps a copy of every message that is published from now on, and returns them."""
    wait_until(lambda: accepts_chords(broker), "chords to be accepted", 15)
    broker.declare("copies", {})
    for key in (RESULTS, KEY):
        broker.bind("copies", "celeriac", key)
    return lambda: broker.take("copies")


SLOW = """
members = [add.s(1, 1), wait_for_file.s(path + "-go", 5)]
result = chord(members, body).apply_async()
print(json.dumps([result.id, result.parent.id, [one.id for one in result.parent]]))
"""


def send(running: Running, program: str = SLOW) -> tuple[str, str, list[str]]:
    """A chord whose last member waits for `finish`; its body, its group and its members."""
    wait_until(lambda: accepts_chords(running.broker), "chords to be accepted", 15)
    body, group, members = running.execute(program)
    first = f"select status from {TABLE} where task_id = '{members[0]}'"
    wait_until(lambda: running.database.query(first) == [("SUCCESS",)], "the first member", 15)
    return body, group, members


def finish(running: Running) -> None:
    Path(f"{running.runs}-go").touch()


def wait_for_body(running: Running, body: str, status: str = "SUCCESS") -> None:
    query = f"select status from {TABLE} where task_id = '{body}'"
    wait_until(lambda: running.database.query(query) == [(status,)], f"the body: {status}", 60)
    running.wait_for_chords()


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_messages_that_come_twice(start: Start, engine: str) -> None:
    running = start(engine=engine)
    copies = messages_about(running.broker)
    body, _, _ = send(running)
    # WHEN everything comes once more while the chord is open, and again when it has ended
    early = copies()
    assert len(early) >= 2
    running.broker.publish(*early)
    time.sleep(1)
    assert running.bodies() == {}
    finish(running)
    wait_for_body(running, body)
    running.broker.publish(*early, *copies())
    wait_until(lambda: running.broker.depth(RESULTS) == 0, "the copies to be stored", 15)
    time.sleep(6)
    # THEN the body has run once
    assert running.bodies() == {body: 1}
    assert running.unlocks() == (1, 0)


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_members_that_come_before_their_chord(start: Start, engine: str) -> None:
    running = start(engine=engine)
    # GIVEN the messages of a chord, in the opposite order
    copies = messages_about(running.broker)
    running.daemon.stop()
    finish(running)
    ignored = SLOW.replace("add.s(1, 1)", "add.s(1, 1).set(ignore_result=True)")
    body, _, _ = running.execute(ignored)
    wait_until(lambda: running.broker.depth("copies") == 4, "the messages", 15)
    messages = copies()
    assert len({message.properties["content_type"] for message in messages}) == 3
    running.broker.take(RESULTS)
    # WHEN they are stored one after another
    running.daemon.start_consuming()
    for message in reversed(messages):
        running.broker.publish(message)
        time.sleep(0.3)
    wait_for_body(running, body)
    assert running.bodies() == {body: 1}
    assert running.execute(f"print(json.dumps(app.AsyncResult({body!r}).get()))") == [2, 5]


def test_members_of_workers_that_do_not_say_so(start: Start) -> None:
    """Workers of Celeriac 0.1, and those with `django-db`, do not say that a task is a member."""
    running = start()
    log = running.folder / "old.log"
    options = ("--hostname", "old@test", "--queues", "old")
    old = running.project.worker(log, *options, result_backend="django-db")
    running.workers.append(old)
    old.start()
    old.wait_for(" ready.")
    body, _, _ = send(running, SLOW.replace("5)]", "5).set(queue='old')]"))
    finish(running)
    wait_for_body(running, body)
    assert running.bodies() == {body: 1}


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_a_daemon_that_is_killed(start: Start, engine: str) -> None:
    running = start(engine=engine)
    bodies = []
    for number in range(5):
        # WHEN it is killed at some point between the end of the last member and the body
        Path(f"{running.runs}-go").unlink(missing_ok=True)
        body, _, _ = send(running)
        finish(running)
        time.sleep(number * 0.02)
        running.daemon.kill()
        running.daemon.start_consuming()
        bodies.append(body)
    for body in bodies:
        wait_for_body(running, body)
    counts = running.bodies()
    assert set(counts) == set(bodies)
    sent, again = running.unlocks()
    assert set(counts.values()) == {1} or again > 0, (counts, sent, again)


def test_a_worker_that_is_killed_while_it_unlocks(start: Start) -> None:
    running = start()
    # GIVEN an unlock message in a queue, without the results, which are large
    program = SLOW.replace("add.s(1, 1)", "add.s('x' * 20_000, 'y')")
    body, _, _ = send(running, program.replace("body)", "body.set(queue='elsewhere'))"))
    finish(running)
    wait_until(lambda: running.broker.depth("elsewhere") == 1, "the unlock message", 15)
    # WHEN a worker is killed while it reads them
    with running.database.connect() as connection:
        running.database.lock(connection)
        worker = running.start_worker("--queues", "elsewhere")
        worker.wait_for("celery.chord_unlock")
        time.sleep(1)
        worker.kill()
    # THEN another one gets the message
    running.start_worker("--queues", "elsewhere")
    wait_for_body(running, body)
    assert running.bodies() == {body: 1}
    assert running.unlocks() == (1, 0)


@pytest.mark.parametrize("version", ["celery-5.7", full("celery-5.2")])
def test_a_row_that_is_deleted(start: Start, version: str) -> None:
    running = start(version)
    body, group, members = send(running)
    # WHEN the row of a member that has ended is deleted
    running.database.execute(f"delete from {TABLE} where task_id = '{members[0]}'")
    finish(running)
    # THEN the body fails, and nothing waits for ever
    wait_for_body(running, body, "FAILURE")
    assert running.bodies() == {}
    assert 5 <= running.polls() <= 15
    query = f"select count(*) from celeriac_chord where group_id = '{group}'"
    assert running.database.query(query) == [(1,)]


def test_rows_of_open_chords_are_kept(start: Start) -> None:
    running = start()
    body, group, members = send(running)
    done = running.execute("print(json.dumps(add.delay(1, 1).get(timeout=30)))")
    assert done == 2
    database = ["--database", running.project.env["DATABASE_URL"]]
    time.sleep(1.5)
    succeed("cleanup", *database, "--result-expires", "1s")
    running.execute("app.backend.reader.expires = 1; app.backend.cleanup(); print(json.dumps(1))")
    rows = {task_id for (task_id,) in running.database.query(f"select task_id from {TABLE}")}
    assert members[0] in rows
    listed = succeed("chords", "list", "--json", *database)
    (chord,) = [json.loads(line) for line in listed.splitlines()]
    assert (chord["id"], chord["members"], chord["awaited"]) == (group, 2, 1)
    shown = succeed("chords", "show", group, *database)
    assert members[1] in shown
    assert "waits for members" in shown
    finish(running)
    wait_for_body(running, body)
    assert not succeed("chords", "list", "--json", *database)
    assert "no open chord" in fail("chords", "show", group, *database)


PLAIN = """
import os
from celery import Celery, chord

app = Celery("plain", broker=os.environ["BROKER"], backend="celeriac://")
app.conf.broker_connection_retry_on_startup = True


@app.task(name="add")
def add(left, right):
    return left + right


@app.task(name="total")
def total(numbers):
    return sum(numbers)


if __name__ == "__main__":
    ignored = add.si(4, 4).set(ignore_result=True)
    print(chord([add.s(1, 1), add.s(2, 2), ignored], total.s()).apply_async().id)
    print(chord([add.s(1, 1), add.s(2, "two")], total.s()).apply_async().id)
"""


@pytest.mark.parametrize("options", [[], ["--quiet", "--pool", "threads"]], ids=["", "late"])
def test_workers_without_django(
    options: list[str],
    without_django: dict[str, str],
    broker: Broker,
    databases: Databases,
    make_daemon: Callable[..., Daemon],
    tmp_path: Path,
) -> None:
    database = databases.migrated("postgresql")
    make_daemon(broker.url, database.url).start_consuming()
    wait_until(lambda: accepts_chords(broker), "chords to be accepted", 15)
    (tmp_path / "plain.py").write_text(PLAIN)
    env = without_django | {"BROKER": broker.url}
    celery = Path(sys.executable).with_name("celery")
    # Without its banner, a worker makes the backend only when the first task runs.
    quiet, *pool = options or [None]
    command = [celery, *filter(None, [quiet]), "-A", "plain", "worker", *pool]
    command += ["--concurrency", "2", "--loglevel", "INFO"]
    worker = Process("Celery worker", command, tmp_path / "plain.log", env=env, cwd=tmp_path)
    worker.start()
    try:
        worker.wait_for(" ready.")
        # WHEN chords are sent and run without Django anywhere
        command = [sys.executable, "plain.py"]
        sent = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, check=True)
        good, bad = sent.stdout.decode().split()
        # THEN the bodies run, or fail with the reason
        ends = f"select task_id, status, result from {TABLE} where task_id in ('{good}', '{bad}')"
        wait_until(lambda: len(database.query(ends)) == 2, "the bodies", 30)
        found = {row[0]: row[1:] for row in database.query(ends)}
        assert found[good] == ("SUCCESS", "14")
        assert found[bad][0] == "FAILURE"
        assert "TypeError" in found[bad][1]
        assert "ReadingError" not in worker.output()
        # AND no message is left without an acknowledgement
        worker.stop()
        assert broker.depth("celery") == 0
    finally:
        worker.kill()


AGAIN = """
frozen = chord([add.s(1, 1), add.s(2, 2)], body)
frozen.freeze()
group_id = frozen.tasks.id
ids = []
for _ in range(2):
    ids.append(frozen.clone().apply_async(task_id=frozen.body.id).id)
    time.sleep(3)
print(json.dumps(ids))
"""


def test_a_chord_that_is_applied_again(start: Start) -> None:
    running = start()
    wait_until(lambda: accepts_chords(running.broker), "chords to be accepted", 15)
    ids = running.execute(AGAIN)
    running.wait_for_chords()
    assert sum(running.bodies().values()) == 2, (ids, running.bodies())


def test_without_the_tables_workers_poll(start: Start) -> None:
    running = start()
    wait_until(lambda: accepts_chords(running.broker), "chords to be accepted", 15)
    running.daemon.stop()
    for table in ("celeriac_chordmember", "celeriac_chord"):
        running.database.execute(f"drop table {table}")
    # GIVEN a queue that is still bound
    running.daemon.start_consuming()
    assert accepts_chords(running.broker)
    result = running.execute("print(json.dumps(value(chord([add.s(1, 1)], body).apply_async())))")
    assert result == [2]
    assert set(running.bodies().values()) == {1}
    assert "celeriac migrate" in running.daemon.output()


def test_a_daemon_that_accepts_no_chords(start: Start) -> None:
    running = start()
    wait_until(lambda: accepts_chords(running.broker), "chords to be accepted", 15)
    running.daemon.stop()
    with running.broker.channel() as channel:
        channel.queue_unbind(RESULTS, "celeriac", KEY)
    # WHEN the messages are stored by something that knows no chords
    result = "chord([add.s(1, 1)], body).apply_async().id"
    body = running.execute(f"print(json.dumps({result}))")
    assert running.broker.depth(DEAD) == 0
    running.daemon.start_consuming()
    # THEN Celery's own polling completes it
    wait_for_body(running, body)
    assert running.bodies() == {body: 1}
    assert running.unlocks() == (0, 0)


def test_the_tasks_have_another_broker(start: Start, rabbitmq: RabbitMQ) -> None:
    results_broker = quote(Broker(rabbitmq.create()).url, safe="")
    running = start()
    wait_until(lambda: accepts_chords(running.broker), "chords to be accepted", 15)
    program = (
        f"backend = type(app.backend)(app, 'celeriac://?broker={results_broker}')\n"
        "print(json.dumps([backend._has_brokers_in_common(), "
        "app.backend._has_brokers_in_common()]))"
    )
    assert running.execute(program) == [False, True]


BAD = {
    "not JSON": b"{",
    "no members": {"members": []},
    "too long an id": {"members": ["x" * 256]},
    "another task": {"task": "shop.tasks.delete_everything"},
    "another id": {"id": "another"},
    "no message": {"unlock": {"body_b64": "%"}},
    "a later version": {"version": 2},
}


def test_bad_messages_become_dead_letters(start: Start) -> None:
    running = start()
    wait_until(lambda: accepts_chords(running.broker), "chords to be accepted", 15)
    for number, bad in enumerate(BAD.values()):
        if isinstance(bad, dict):
            headers = {"task": "celery.chord_unlock", "id": "unlock"}
            headers |= {name: bad[name] for name in ("task", "id") if name in bad}
            body = {
                "version": 1,
                "group_id": "group",
                "unlock_id": "unlock",
                "members": ["a"],
                "applied_at": "2026-11-30T00:00:00+00:00",
                "unlock": {"headers": headers, "body_b64": "e30="},
            }
            bad = json.dumps(body | bad).encode()
        running.broker.publish(results.raw(f"bad-{number}", bad, content_type=results.CHORD))
    wait_until(lambda: running.broker.depth(DEAD) == len(BAD), "the dead letters", 15)
    assert running.database.query("select count(*) from celeriac_chord") == [(0,)]


def test_a_queue_that_does_not_exist(start: Start) -> None:
    running = start()
    wait_until(lambda: accepts_chords(running.broker), "chords to be accepted", 15)
    # GIVEN a chord whose body's queue is deleted after it was applied
    body, group, _ = send(running, SLOW.replace("body)", "body.set(queue='elsewhere'))"))
    running.broker.delete("elsewhere")
    finish(running)
    database = ["--database", running.project.env["DATABASE_URL"]]
    words = "cannot be unlocked: there is no queue"
    wait_until(lambda: words in succeed("chords", "show", group, *database), "the problem", 15)
    # WHEN the queue is there again
    running.start_worker("--queues", "elsewhere")
    running.database.execute("update celeriac_chord set unlock_at = applied_at")
    wait_for_body(running, body)
    assert running.bodies() == {body: 1}
