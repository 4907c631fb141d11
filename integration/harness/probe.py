"""What a daemon tells over HTTP, asked as Prometheus and Kubernetes ask."""

from __future__ import annotations

import http.client
import json
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from harness.services import HOST, free_port


class Probe:
    """The listener of one daemon, which is started with `options`."""

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
        """How the lanes are, as `/ready` tells it."""
        return json.loads(self.ask("/ready")[2])["lanes"]

    def samples(self) -> dict[tuple[str, frozenset], float]:
        """Every sample by its name and labels; fails where the text is not OpenMetrics."""
        status, headers, body = self.ask("/metrics")
        assert status == 200
        assert headers["content-type"].startswith("application/openmetrics-text")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """One sample of `celeriac_…`; nothing where there is none with exactly these labels."""
        return self.samples().get((f"celeriac_{name}", frozenset(labels.items())))
