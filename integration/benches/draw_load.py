"""Draws the samples that `plot_load.py` has read. Needs only matplotlib."""

from __future__ import annotations

import itertools
import json
import math
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def quantile(rank: float, before: dict, after: dict) -> float:
    """Prometheus' `histogram_quantile` over the observations between two samples."""
    bounds = sorted(after, key=float)
    counts = [after[bound] - before.get(bound, 0) for bound in bounds]
    if not counts or counts[-1] == 0:
        return math.nan
    wanted, low, below = rank * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        high = float(bound)
        if count >= wanted:
            inside = (wanted - below) / (count - below) if count > below else 1
            return low if math.isinf(high) else low + (high - low) * inside
        low, below = high, count
    return math.nan


def main(data: str, output: str) -> None:
    with open(data) as file:
        read = json.load(file)
    samples, outage = read["samples"], read["outage"]
    times = [sample["time"] for sample in samples]
    pairs = list(itertools.pairwise(samples))

    def value(name: str, unit: float = 1) -> list[float]:
        return [sample.get(name, math.nan) / unit for sample in samples]

    def rate(name: str) -> list[float]:
        return [math.nan] + [
            (after[name] - before[name]) / (after["time"] - before["time"])
            for before, after in pairs
        ]

    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), sharex=True, dpi=100)
    (flow, waiting), (lag, process) = axes
    flow.set_title("messages per second")
    flow.plot(times, rate("celeriac_messages_received_total"), label="received", lw=1)
    flow.plot(times, rate("celeriac_messages_acknowledged_total"), label="acknowledged", lw=1)
    waiting.set_title("messages")
    waiting.plot(times, value("celeriac_messages_unacknowledged"), label="held by Celeriac", lw=1)
    waiting.step(times, value("celeriac_queue_messages"), where="post",
                 label="in the queue (asked every 15 s)", lw=1)
    lag.set_title("seconds from state to row")
    for rank, label in ((0.5, "median"), (0.99, "99 %")):
        lags = [quantile(rank, before["lag"], after["lag"]) for before, after in pairs]
        lag.plot(times, [math.nan, *lags], label=label, lw=1, marker=".", ms=2)
    lag.set_yscale("log")
    process.set_title("the process")
    process.plot(times, value("process_resident_memory_bytes", 2**20), label="memory, MiB", lw=1)
    process.plot(times, [100 * cores for cores in rate("process_cpu_seconds_total")],
                 label="CPU, % of a core", lw=1)
    for axis in axes.flat:
        axis.axvspan(*outage, color="tab:red", alpha=0.1, lw=0, label="no database")
        axis.grid(alpha=0.2)
        axis.legend(fontsize=7, frameon=False)
        if axis is not lag:
            axis.set_ylim(bottom=0)
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
