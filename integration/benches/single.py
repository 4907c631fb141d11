"""Measures the CPU time that a single result costs the database server.

    python -m benches.single [--rows N] [--pause MILLISECONDS] [ENGINE…]

Results are published one at a time, with pauses, so that each is a batch of its own. The peer is a
bare `insert` of the same columns by one connection in autocommit mode, prepared on PostgreSQL. The
CPU time is that of the process (PostgreSQL) or of the thread (MariaDB) that serves the connection,
read from /proc, so the server has to run on this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches.drain import bodies
from benches.servers import servers
from harness import results
from harness.broker import RESULTS, Broker, Message, connect, open_channel
from harness.daemon import Daemon
from harness.database import TABLE, Database
from harness.processes import end_on_terminate, wait_until

ENGINES = ("postgresql", "mariadb")

#: The threads of the server that serve connections to this database, and the own one.
THREADS = {
    "postgresql": (
        "select pid from pg_stat_activity "
        "where datname = current_database() and backend_type = 'client backend'",
        "select pg_backend_pid()",
    ),
    "mariadb": (
        "select tid from information_schema.processlist where db = database()",
        "select tid from information_schema.processlist where id = connection_id()",
    ),
}


def threads(cursor: Any, engine: str) -> set[int]:
    """The threads that serve other connections to the database."""
    everything, own = THREADS[engine]
    cursor.execute(everything)
    found = {thread for (thread,) in cursor.fetchall()}
    cursor.execute(own)
    return found - {cursor.fetchone()[0]}


def cpu_microseconds(thread: int) -> float:
    """The CPU time of a thread so far."""
    [path] = Path("/proc").glob(f"[0-9]*/task/{thread}/schedstat")
    return int(path.read_text().split()[0]) / 1000


def measure(database: Database, run: Callable[[], None], rows: int) -> float:
    """The CPU time in µs a row that `run` costs the server, over the one other connection."""
    with database.connect() as connection:
        cursor = connection.cursor()
        [thread] = threads(cursor, database.engine)
        before = cpu_microseconds(thread)
        run()
        return (cpu_microseconds(thread) - before) / rows


def of_daemon(
    broker: Broker, database: Database, log: Path, backlog: list[dict], pause: float
) -> float:
    daemon = Daemon(log, broker.url, database.url)
    daemon.start_consuming()
    connection = connect(broker.url)
    channel = open_channel(connection)

    def publish(bodies: list[dict]) -> None:
        for body in bodies:
            data, properties = json.dumps(body).encode(), results.properties(body["task_id"])
            message = Message(data, properties)
            channel.basic_publish(message.to_amqp(), routing_key=RESULTS)
            time.sleep(pause)

    def run() -> None:
        publish(backlog)
        stored = before + len(backlog)
        wait_until(lambda: database.count() == stored, "the rows", 60, 0.5)

    try:
        # The server plans a statement anew for its first executions.
        publish([{**body, "task_id": results.new_id()} for body in backlog[:20]])
        wait_until(lambda: database.count() == 20, "the first rows", 60)
        before = database.count()
        return measure(database, run, len(backlog))
    finally:
        connection.close()
        daemon.stop()


def of_insert(database: Database, backlog: list[dict], pause: float) -> float:
    columns = (
        "task_id, status, content_type, content_encoding, result, date_done, date_created, "
        "traceback, meta, task_args, task_kwargs, task_name, worker, date_started, "
        "periodic_task_name"
    )
    with database.connect() as connection:
        cursor = connection.cursor()
        marks = ", ".join(["%s"] * len(columns.split(",")))
        statement = f"insert into {TABLE} ({columns}) values ({marks})"
        # psycopg prepares a statement only after some executions, and PyMySQL never does.
        options = {"prepare": True} if database.engine == "postgresql" else {}

        def insert(body: dict, task_id: str) -> None:
            done = body["date_done"].removesuffix("+00:00")
            row = (
                task_id, "SUCCESS", "application/json", "utf-8", str(body["result"]), done, done,
                None, '{"children": []}', None, None, body["name"], body["worker"], None, None,
            )
            cursor.execute(statement, row, **options)
            time.sleep(pause)

        def run() -> None:
            for body in backlog:
                insert(body, body["task_id"])

        for body in backlog[:20]:
            insert(body, results.new_id())
        return measure(database, run, len(backlog))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500, help="results")
    parser.add_argument("--pause", type=float, default=10, help="milliseconds between two results")
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=", ".join(ENGINES))
    options = parser.parse_args()
    if unknown := set(options.engines) - set(ENGINES):
        parser.error(f"{', '.join(unknown)} is no server: choose from {', '.join(ENGINES)}")
    end_on_terminate()

    backlog, pause = bodies(options.rows, 7), options.pause / 1000
    print(f"{options.rows} results, one every {options.pause:g} ms")
    print(f"{'database':<12}{'celeriac':>14}{'bare insert':>14}{'ratio':>8}")
    with servers() as used:
        rabbitmq, databases, folder = used.rabbitmq, used.databases, used.folder
        for engine in options.engines or ENGINES:
            broker = Broker(rabbitmq.create())
            log = folder / f"{engine}.log"
            ours = of_daemon(broker, databases.migrated(engine), log, backlog, pause)
            bare = of_insert(databases.migrated(engine), backlog, pause)
            print(f"{engine:<12}{ours:>11.0f} µs{bare:>11.0f} µs{ours / bare:>8.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
