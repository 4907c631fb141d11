"""Drains the same backlog with different numbers of lanes and daemons.

    python -m benches.lanes [--rows N] [--rounds N] [--seed N] [--started] [ENGINE…]

Each round drains a backlog of N results once with each arrangement, into an empty table. The
figures are the medians of the rounds, and the ratios to one lane in the same round. The time is
measured from the first start to the last row. With `--started` each result is preceded by the
state STARTED of the same task, so that lanes and daemons write the same rows at the same time.
Conflicts are writes that were tried again because of another writer, for example after a deadlock.
CPU time is read from /proc: that of the daemons, of the database server and of RabbitMQ, per row.
The servers are found by the names of their processes, so nothing else should use them meanwhile; a
server on another machine shows as 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benches.drain import TICKS_PER_SECOND, bodies, fill
from benches.servers import servers
from harness.broker import RESULTS, Broker
from harness.daemon import Daemon
from harness.database import TABLE, Database
from harness.probe import Probe
from harness.processes import end_on_terminate

ENGINES = ("postgresql", "mariadb")

#: The process names of each server.
SERVERS = {"postgresql": {"postgres"}, "mariadb": {"mariadbd", "mysqld"}, "rabbitmq": {"beam.smp"}}


@dataclass(frozen=True)
class Arrangement:
    daemons: int
    lanes: int

    def __str__(self) -> str:
        lanes = f"{self.lanes} lane{'s' * (self.lanes > 1)}"
        return lanes if self.daemons == 1 else f"{self.daemons} daemons of {lanes}"


ONE = Arrangement(1, 1)
ARRANGEMENTS = (ONE, Arrangement(1, 2), Arrangement(1, 4), Arrangement(2, 1))


@dataclass(frozen=True)
class Measured:
    """Rows per second, CPU time in µs per row, and the peak memory of all daemons in MiB."""

    rate: float
    daemon_cpu: float
    database_cpu: float
    broker_cpu: float
    peak: float
    conflicts: float


def cpu_seconds(fields: list[str]) -> float:
    """The CPU time in a line of `/proc/PID/stat`, including that of children that have ended."""
    return sum(map(int, fields[11:15])) / TICKS_PER_SECOND


def cpu_of(names: set[str]) -> float:
    """The CPU seconds of all processes with these names."""
    seconds = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        if name in names:
            seconds += cpu_seconds(rest.split())
    return seconds


def drain(
    broker: Broker, database: Database, folder: Path, rows: int, arrangement: Arrangement
) -> Measured:
    """Runs the daemons until all rows are stored, and returns what they and the servers used."""
    servers = (SERVERS[database.engine], SERVERS["rabbitmq"])
    with ExitStack() as stack:
        daemons = []
        probes = []
        for number in range(arrangement.daemons):
            log, lanes = folder / f"{database.engine}-{number}.log", str(arrangement.lanes)
            probe = Probe()
            probes.append(probe)
            daemon = Daemon(log, broker.url, database.url, "--lanes", lanes, *probe.options)
            stack.callback(daemon.kill)
            daemons.append(daemon)
        connection = stack.enter_context(database.connect())
        cursor = connection.cursor()
        before = [cpu_of(names) for names in servers]
        began = time.perf_counter()
        for daemon in daemons:
            daemon.start()
        while True:
            cursor.execute(f"select count(*) from {TABLE} where status = 'SUCCESS'")
            if cursor.fetchone()[0] >= rows:
                break
            if dead := [daemon for daemon in daemons if not daemon.is_alive()]:
                raise SystemExit(f"a daemon has ended: {dead[0].last_words()}")
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        database_cpu, broker_cpu = (
            cpu_of(names) - used for names, used in zip(servers, before, strict=True)
        )
        conflicts = sum(
            probe.value("database_errors_total", queue=RESULTS, **{"class": "conflict"}) or 0
            for probe in probes
        )
        daemon_cpu = peak = 0.0
        for daemon in daemons:
            process = Path(f"/proc/{daemon.pid}")
            daemon_cpu += cpu_seconds(process.joinpath("stat").read_text().rpartition(")")[2].split())
            status = process.joinpath("status").read_text().splitlines()
            peak += int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
            daemon.stop()
    per_row = 1e6 / rows
    return Measured(
        rows / seconds, daemon_cpu * per_row, database_cpu * per_row, broker_cpu * per_row, peak,
        conflicts,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="results in the backlog")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--started", action="store_true", help="STARTED before each result")
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=", ".join(ENGINES))
    options = parser.parse_args()
    if unknown := set(options.engines) - set(ENGINES):
        parser.error(f"{', '.join(unknown)} has no lanes: choose from {', '.join(ENGINES)}")
    end_on_terminate()

    backlog = bodies(options.rows, options.seed)
    messages = backlog
    if options.started:
        pairs = (({**body, "status": "STARTED", "result": {"pid": 1}}, body) for body in backlog)
        messages = [body for pair in pairs for body in pair]
    load = os.getloadavg()[0]
    print(f"{options.rows} results, seed {options.seed}, {options.rounds} rounds, "
          f"{os.cpu_count()} cores, load {load:.1f} before it began")
    print(f"{'database':<12}{'':<20}{'rows':>12}{'to 1 lane':>12}{'daemon CPU':>14}"
          f"{'database CPU':>14}{'broker CPU':>14}{'peak memory':>14}"
          f"{'conflicts':>11}")
    with servers() as used:
        rabbitmq, databases, folder = used.rabbitmq, used.databases, used.folder
        for engine in options.engines or ENGINES:
            measured: dict[Arrangement, list[Measured]] = {one: [] for one in ARRANGEMENTS}
            for _ in range(options.rounds):
                for arrangement in ARRANGEMENTS:
                    count = rabbitmq.count()
                    broker = Broker(rabbitmq.create())
                    fill(broker, messages)
                    database = databases.migrated(engine)
                    one = drain(broker, database, folder, len(backlog), arrangement)
                    measured[arrangement].append(one)
                    rabbitmq.remove_since(count)
            for arrangement, runs in measured.items():
                ratios = [run.rate / one.rate for run, one in zip(runs, measured[ONE], strict=True)]

                def median(name: str, runs: list[Measured] = runs) -> float:
                    return statistics.median(getattr(run, name) for run in runs)

                print(f"{engine:<12}{arrangement!s:<20}{median('rate'):>10.0f}/s"
                      f"{statistics.median(ratios):>11.2f}x{median('daemon_cpu'):>11.1f} µs"
                      f"{median('database_cpu'):>11.1f} µs{median('broker_cpu'):>11.1f} µs"
                      f"{median('peak'):>10.1f} MiB{median('conflicts'):>11.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
