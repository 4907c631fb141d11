"""Notifications to systemd over a real socket, and signals.

The unit in `packaging/` is checked with systemd's own tools if they are installed.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import results
from harness.daemon import REPOSITORY, Daemon, binary
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.services import HOST

on_sqlite = pytest.mark.parametrize("engine", ["sqlite"])

UNIT = REPOSITORY / "packaging" / "celeriac.service"


class Manager:
    """The socket of the service manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.told: list[str] = []

    def listen(self) -> list[str]:
        """All notifications so far, by line."""
        while True:
            try:
                self.told += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return self.told

    def wait_for(self, pattern: str, seconds: float = 20) -> None:
        wait_until(
            lambda: any(re.fullmatch(pattern, line) for line in self.listen()), pattern, seconds
        )

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def tell(daemon: Daemon, manager: Manager, watchdog_seconds: float = 0) -> None:
    daemon.env["NOTIFY_SOCKET"] = str(manager.path)
    if watchdog_seconds:
        daemon.env["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1e6))


@on_sqlite
def test_ready_when_every_lane_consumes(own_pipeline: Pipeline, manager: Manager) -> None:
    # GIVEN a database file that does not exist yet
    path = Path(own_pipeline.database.url.removeprefix("sqlite:///"))
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    tell(own_pipeline.daemon, manager, watchdog_seconds=2)
    # WHEN the daemon is started
    own_pipeline.daemon.start()
    # THEN it says why it is not ready, and that it is alive
    manager.wait_for(r"STATUS=celeriac\.results is not consumed: .*there is no file .*")
    manager.wait_for("WATCHDOG=1")
    assert "READY=1" not in manager.listen()
    # WHEN the file exists, THEN it is ready
    hidden.rename(path)
    manager.wait_for("READY=1")
    manager.wait_for(r"STATUS=consuming celeriac\.results, 0 rows stored")
    # THEN it sends a keep-alive every second
    before = manager.listen().count("WATCHDOG=1")
    time.sleep(3.5)
    assert 2 <= manager.listen().count("WATCHDOG=1") - before <= 5
    # WHEN rows are stored, THEN the status shows their number now and then
    task_id = results.new_id()
    own_pipeline.broker.publish(results.result(task_id))
    own_pipeline.wait_for_rows({task_id: "SUCCESS"})
    manager.wait_for(r"STATUS=consuming celeriac\.results, 1 rows stored")
    # WHEN it is stopped, THEN it says so
    assert own_pipeline.daemon.stop() == 0
    assert "STOPPING=1" in manager.listen()
    assert manager.told.count("READY=1") == 1


def test_an_outage_does_not_fail_the_start(
    make_daemon: Callable[..., Daemon], manager: Manager, tmp_path: Path
) -> None:
    daemon = make_daemon(f"amqp://{HOST}:1//", f"sqlite:///{tmp_path / 'none'}")
    tell(daemon, manager)
    daemon.start()
    # THEN the start succeeds before systemd's timeout, and the status has the reason
    manager.wait_for("READY=1", 45)
    assert any("is not consumed" in line for line in manager.told)
    assert "WATCHDOG=1" not in manager.told, "systemd has not requested it"
    daemon.stop()


@on_sqlite
def test_sighup_ends_it_properly(own_pipeline: Pipeline) -> None:
    own_pipeline.daemon.start_consuming()
    assert own_pipeline.daemon.stop(20, signal.SIGHUP) == 0
    # WHEN it is started so that SIGHUP is ignored, THEN it keeps running
    own_pipeline.daemon.command = ["nohup", *own_pipeline.daemon.command]
    own_pipeline.daemon.start_consuming()
    own_pipeline.daemon.terminate(signal.SIGHUP)
    own_pipeline.wait_until_handled()
    own_pipeline.stop_and_check_queues()


@on_sqlite
def test_urls_from_files(own_pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline = own_pipeline
    flags = []
    for name, url in {"broker": pipeline.broker.url, "database": pipeline.database.url}.items():
        path = tmp_path / name
        path.write_text(f"{url}\n")
        path.chmod(0o600)
        flags += [f"--{name}-file", str(path)]
    # GIVEN variables with other URLs, over which the command line takes precedence
    command = [str(binary()), "run", *flags, "--log-format", "json"]
    pipeline.daemon.command = command
    pipeline.daemon.env |= {"CELERIAC_BROKER": "amqp://nowhere.invalid//"}
    pipeline.daemon.env |= {"CELERIAC_DATABASE": "sqlite:////nowhere"}
    pipeline.daemon.start_consuming()
    pipeline.wait_until_handled()
    assert '"level":"WARN"' not in pipeline.daemon.output()
    pipeline.stop_and_check_queues()


def test_flags_and_variables_in_the_unit_exist() -> None:
    unit = UNIT.read_text()
    [start] = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    help_text = subprocess.run(
        [binary(), "run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for flag in re.findall(r"--[a-z-]+", start):
        assert flag in help_text, flag
    for variable in set(re.findall(r"CELERIAC_[A-Z_]+", unit)):
        assert variable in help_text, variable
    assert set(re.findall(r"%d/(\w+)", start)) == set(re.findall(r"LoadCredential=(\w+):", unit))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_unit_and_rates_it_safe(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/celeriac", str(binary())))
    verified = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    # THEN the exposure, of which 10 is the worst, is at most 2
    secured = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert secured.returncode == 0, secured.stdout[-300:]
