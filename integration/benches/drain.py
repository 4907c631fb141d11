"""Stores a backlog of results in each database, with Celeriac and with django-celery-results.

    python -m benches.drain [--rows N] [--peer-rows N] [--table-rows N] [--lanes N] [--seed N]
                            [--daemon OPTIONS] [ENGINE…]

N results, one for each task, wait in a durable quorum queue before `celeriac run` starts; the same
seed gives the same results. The time is measured from the start of the daemon to its last row. CPU
time and memory are those of the daemon, read from /proc. The limit is the server's own `insert …
select` of the same rows from another table, in one transaction. The peer is one process that passes
the first of the same results to the `DatabaseBackend` of django-celery-results, as a worker process
does. With `--table-rows` the table has that many rows before the daemon and the limit are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benches.servers import servers
from harness import environments, results
from harness.broker import RESULTS, Broker, Message, connect, open_channel
from harness.daemon import Daemon
from harness.database import TABLE, Database
from harness.processes import end_on_terminate
from harness.project import SITE, Project

ENGINES = ("postgresql", "mariadb", "sqlite")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START = datetime(2026, 1, 1, tzinfo=UTC)

#: Runs in `manage.py shell`: stores the results of a file and prints how long it took.
PEER = """
import json, time
from celery.app.task import Context
from shop.celery import app

results = [json.loads(line) for line in open(PATH)]
backend = app.backend
requests = [
    Context(task=r["name"], args=r["args"], kwargs=r["kwargs"], hostname=r["worker"],
            argsrepr=repr(tuple(r["args"])), kwargsrepr=repr(r["kwargs"]), children=[])
    for r in results
]
backend.store_result("warm-up", None, "SUCCESS", request=requests[0])
cpu, clock = time.process_time(), time.perf_counter()
for result, request in zip(results, requests):
    backend.store_result(result["task_id"], result["result"], result["status"], request=request)
print(json.dumps({"seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu}))
"""


def bodies(count: int, seed: int) -> list[dict]:
    """Results of a web shop's tasks, each of about half a kilobyte and different from the others.
    """
    chance = random.Random(seed)
    made = []
    for number in range(count):
        task_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        done = START + timedelta(microseconds=chance.randrange(10**12))
        value = {
            "order": number,
            "items": [chance.randrange(1000) for _ in range(20)],
            "note": "x" * chance.randrange(200),
        }
        made.append(results.body(task_id, result=value, args=[number], date_done=done.isoformat()))
    return made


def fill(broker: Broker, backlog: list[dict]) -> None:
    """Publishes without confirms, and then waits until all messages are in the queue."""
    broker.declare(RESULTS)
    connection = connect(broker.url, confirm=False)
    channel = open_channel(connection)
    for body in backlog:
        message = Message(json.dumps(body).encode(), results.properties(body["task_id"]))
        channel.basic_publish(message.to_amqp(), routing_key=RESULTS)
    connection.close()
    while broker.depth(RESULTS) < len(backlog):
        time.sleep(0.1)


def drain(
    broker: Broker, database: Database, log: Path, rows: int, lanes: int, more: list[str]
) -> dict[str, float]:
    """Runs the daemon until all rows are stored, and returns what it used."""
    [(last_id,)] = database.query(f"select coalesce(max(id), 0) from {TABLE}")
    options = () if database.engine == "sqlite" else ("--lanes", str(lanes))
    daemon = Daemon(log, broker.url, database.url, *options, *more)
    began = time.perf_counter()
    daemon.start()
    try:
        with database.connect() as connection:
            cursor = connection.cursor()
            while True:
                # Counting every row of a large table would take both processors.
                cursor.execute(f"select count(*) from {TABLE} where id > {last_id}")
                if cursor.fetchone()[0] >= rows:
                    break
                if not daemon.is_alive():
                    raise SystemExit(f"the daemon has ended: {daemon.last_words()}")
                time.sleep(0.1)
        seconds = time.perf_counter() - began
        process = Path(f"/proc/{daemon.pid}")
        ticks = process.joinpath("stat").read_text().rsplit(")", 1)[1].split()[11:13]
        status = process.joinpath("status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    finally:
        daemon.stop()
    return {
        "rate": rows / seconds,
        "cpu": sum(map(int, ticks)) / TICKS_PER_SECOND / rows * 1e6,
        "peak": int(peak.split()[1]) / 1024,
    }


#: Numbers from 1 on, as a table `numbers` with the column `n`.
NUMBERS = {
    "postgresql": "generate_series(1, {rows}) as numbers (n)",
    "mariadb": "(select seq as n from seq_1_to_{rows}) as numbers",
    "sqlite": "(with recursive numbers (n) as (select 1 union all select n + 1 from numbers "
    "where n < {rows}) select n from numbers) as numbers",
}


def fill_table(database: Database, rows: int) -> None:
    """Adds other rows to the table of task results."""
    text = "concat('other-', n)" if database.engine == "mariadb" else "'other-' || n"
    time = "'2025-06-01 00:00:00'"
    if database.engine != "sqlite":
        time = f"timestamp {time}"
    database.execute(
        f"insert into {TABLE} (task_id, status, content_type, content_encoding, result, "
        f"date_done, date_created) select {text}, 'SUCCESS', 'application/json', 'utf-8', "
        f"'{'x' * 300}', {time}, {time} from {NUMBERS[database.engine].format(rows=rows)}"
    )
    # As autovacuum would, so that the statements are planned for a table of this size.
    if database.engine == "postgresql":
        database.execute(f"vacuum analyze {TABLE}")


def settle(database: Database) -> None:
    """Makes measurements begin alike: after a checkpoint PostgreSQL logs whole pages for a while."""
    if database.engine == "postgresql":
        database.execute("checkpoint")


def limit(database: Database, rows: int) -> float:
    """The rows a second with which the server itself inserts the newest rows again, with other ids.
    """
    with database.connect() as connection:
        cursor = connection.cursor()
        cursor.execute(f"select * from {TABLE} where 1 = 0")
        names = [column[0] for column in cursor.description if column[0] != "id"]
    columns = ", ".join(names)
    rest = "substr(task_id, 2)"
    other_id = f"concat('x', {rest})" if database.engine == "mariadb" else f"'x' || {rest}"
    values = ", ".join(f"{other_id} as task_id" if name == "task_id" else name for name in names)
    database.execute(
        f"create table celeriac_limit as select {values} from {TABLE} order by id desc limit {rows}"
    )
    settle(database)
    began = time.perf_counter()
    database.execute(f"insert into {TABLE} ({columns}) select {columns} from celeriac_limit")
    return rows / (time.perf_counter() - began)


def peer(project: Project, backlog: list[dict]) -> dict[str, float]:
    """Stores results through django-celery-results in one process."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(body) + "\n" for body in backlog)
        file.flush()
        code = f"PATH = {file.name!r}\n{PEER}"
        done = subprocess.run(
            [project.python, "manage.py", "shell", "--no-imports", "-c", code],
            cwd=SITE, env=project.env, capture_output=True, text=True, check=False,
        )
    if done.returncode != 0:
        raise SystemExit(f"django-celery-results failed:\n{done.stderr}")
    used = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "rate": len(backlog) / used["seconds"],
        "cpu": used["cpu"] / len(backlog) * 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="results in the backlog")
    parser.add_argument("--peer-rows", type=int, default=5_000, help="of them for the peer")
    parser.add_argument("--table-rows", type=int, default=0, help="other rows in the table")
    parser.add_argument("--lanes", type=int, default=1, help="lanes of the daemon")
    parser.add_argument(
        "--daemon", default="", help="more options of the daemon, such as '--hints=false'"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=", ".join(ENGINES))
    options = parser.parse_args()
    if unknown := set(options.engines) - set(ENGINES):
        parser.error(f"no engine is called {', '.join(unknown)}: choose from {', '.join(ENGINES)}")
    end_on_terminate()

    backlog = bodies(options.rows, options.seed)
    size = sum(len(json.dumps(body)) for body in backlog) / len(backlog)
    print(f"{options.rows} results of {size:.0f} bytes on average, seed {options.seed}, "
          f"{options.lanes} lane(s); django-celery-results stores {options.peer_rows} of them")
    print(f"{'database':<12}{'celeriac':>12}{'the limit':>12}{'of it':>8}{'CPU/message':>14}"
          f"{'peak memory':>14}{'the peer':>12}{'CPU/result':>14}{'ratio':>8}")
    python = environments.python("celery-5.7")
    with servers() as used:
        rabbitmq, databases, folder = used.rabbitmq, used.databases, used.folder
        for engine in options.engines or ENGINES:
            broker = Broker(rabbitmq.create())
            fill(broker, backlog)
            database = databases.migrated(engine)
            if options.table_rows:
                fill_table(database, options.table_rows)
            settle(database)
            log = folder / f"{engine}.log"
            ours = drain(
                broker, database, log, len(backlog), options.lanes, options.daemon.split()
            )
            most = limit(database, len(backlog))
            project = Project(python, databases.migrated(engine).url, broker.url)
            theirs = peer(project, backlog[: options.peer_rows])
            print(f"{engine:<12}{ours['rate']:>10.0f}/s{most:>10.0f}/s{ours['rate'] / most:>8.2f}"
                  f"{ours['cpu']:>11.1f} µs{ours['peak']:>10.1f} MiB{theirs['rate']:>10.0f}/s"
                  f"{theirs['cpu']:>11.0f} µs{ours['rate'] / theirs['rate']:>7.1f}x", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
