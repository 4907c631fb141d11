"""Plots the metrics of a daemon under even load, during which the database is away for a while.

    python -m benches.plot_load [--results N] [--seconds S] [--outage S] [--output FILE.png]

Two publishers send N results in S seconds through RabbitMQ. The daemon connects to PostgreSQL
through a proxy, which refuses connections for the time of the outage after a third of S. The
metrics are read each second, and drawn by matplotlib in its own virtual environment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from benches.servers import servers
from harness import environments, results
from harness.broker import RESULTS, Broker, connect, open_channel
from harness.daemon import REPOSITORY, Daemon
from harness.probe import Probe
from harness.processes import end_on_terminate, wait_until
from harness.proxy import Proxy

PUBLISHERS = 2


def publish(broker: Broker, count: int, seconds: float, began: float) -> None:
    """Publishes results at an even rate, each as if its task had just ended."""
    connection = connect(broker.url, confirm=False)
    channel = open_channel(connection)
    for number in range(count):
        due = began + seconds * number / count
        if (wait := due - time.monotonic()) > 0.005:
            time.sleep(wait)
        done = datetime.now(UTC).isoformat(timespec="microseconds")
        value = {"order": number, "note": "x" * 300}
        message = results.result(results.new_id(), result=value, date_done=done)
        channel.basic_publish(message.to_amqp(), routing_key=RESULTS)
    connection.close()


def read(probe: Probe) -> dict[str, object]:
    """Returns the samples to draw; those of the lag by bucket."""
    lag = {}
    sample: dict[str, object] = {"lag": lag}
    for (name, pairs), value in probe.samples().items():
        labels = dict(pairs)
        if name == "celeriac_lag_seconds_bucket":
            lag[labels["le"]] = value
        elif name in ("celeriac_messages_received_total", "celeriac_messages_acknowledged_total",
                      "celeriac_messages_unacknowledged", "celeriac_database_up",
                      "process_resident_memory_bytes", "process_cpu_seconds_total"):
            sample[name] = value
        elif name == "celeriac_queue_messages" and labels["role"] == "results":
            sample[name] = value
    return sample


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=75, help="how long publishing takes")
    parser.add_argument("--outage", type=float, default=20, help="length of the outage")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs/images/load.png")
    options = parser.parse_args()
    end_on_terminate()
    python = environments.python("celery-5.7")
    drawing_python = environments.python("plots/matplotlib")
    with ExitStack() as stack:
        used = stack.enter_context(servers())
        rabbitmq, databases, folder = used.rabbitmq, used.databases, used.folder
        broker = Broker(rabbitmq.create())
        database = databases.migrated("postgresql")
        proxy = stack.enter_context(Proxy(database.url, 5432))
        probe = Probe()
        daemon = Daemon(folder / "log", broker.url, proxy.url, *probe.options)
        stack.callback(daemon.kill)
        daemon.start_consuming()

        began = time.monotonic() + 3
        outage = options.seconds / 3, options.seconds / 3 + options.outage
        publishers = [
            threading.Thread(
                target=publish,
                args=(broker, options.results // PUBLISHERS, options.seconds, began),
                daemon=True,
            )
            for _ in range(PUBLISHERS)
        ]
        for publisher in publishers:
            publisher.start()
        acts = [(outage[0], proxy.refuse), (outage[1], proxy.accept)]
        samples = []
        for second in range(-2, int(options.seconds) + 6):
            time.sleep(max(0.0, began + second - time.monotonic()))
            while acts and second >= acts[0][0]:
                acts.pop(0)[1]()
            samples.append({"time": time.monotonic() - began, **read(probe)})
        for publisher in publishers:
            publisher.join()
        sent = options.results // PUBLISHERS * PUBLISHERS
        wait_until(lambda: database.count() == sent, "every row", 60)
        assert daemon.stop() == 0
        data = folder / "samples.json"
        data.write_text(json.dumps({"outage": outage, "samples": samples}))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        drawing = Path(__file__).with_name("draw_load.py")
        subprocess.run([drawing_python, drawing, data, options.output], check=True)
        print(f"{sent} results, {sent} rows: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
