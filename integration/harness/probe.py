"""Reads a daemon's metrics and health over HTTP."""

from __future__ import annotations

import http.client
import json
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from harness.services import HOST, free_port


class Probe:
    """A client of one daemon, which must be started with `options`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.options = ["--listen", f"{HOST}:{self.port}"]

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def is_live(self) -> bool:
        return self.ask("/live")[0] == 200

    def is_ready(self) -> bool:
        return self.ask("/ready")[0] == 200

    def lanes(self) -> list[dict[str, Any]]:
        """The state of each lane in `/ready`."""
        return json.loads(self.ask("/ready")[2])["lanes"]

    def samples(self) -> dict[tuple[str, frozenset], float]:
        """All samples by name and labels; fails if the text is not valid OpenMetrics."""
        status, headers, body = self.ask("/metrics")
        assert status == 200
        assert headers["content-type"].startswith("application/openmetrics-text")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """The sample of `celeriac_…` with exactly these labels, or None."""
        return self.samples().get((f"celeriac_{name}", frozenset(labels.items())))
