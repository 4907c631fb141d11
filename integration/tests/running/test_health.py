"""`celeriac health` with a running daemon, as a container's health check uses it."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from harness.command import celeriac, fail, succeed
from harness.daemon import Daemon
from harness.pipeline import Pipeline
from harness.probe import Probe
from harness.processes import wait_until
from harness.proxy import Proxy
from harness.services import HOST

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"])


@pytest.fixture
def probe() -> Probe:
    return Probe()


def health(*options: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    return celeriac("health", *options, env=env)


@on_postgresql
def test_health_follows_the_daemon(
    own_pipeline: Pipeline, probe: Probe, make_daemon: Callable[..., Daemon]
) -> None:
    # GIVEN no daemon
    said = fail("health", *probe.options)
    assert f"nobody listens at {HOST}:{probe.port}: is the daemon running" in said
    with Proxy(own_pipeline.database.url, 5432) as proxy:
        # WHEN the daemon is ready
        daemon = make_daemon(own_pipeline.broker.url, proxy.url, *probe.options)
        daemon.start_consuming()
        # THEN the command says so
        wait_until(probe.is_ready, "the daemon to be ready", 30)
        assert succeed("health", *probe.options) == "ready\n"
        assert succeed("health", "--live", *probe.options) == "live\n"
        # WHEN its database is unreachable
        proxy.refuse()
        wait_until(lambda: not probe.is_ready(), "word of the outage", 30)
        # THEN it is live but not ready, and the reason is printed
        done = health(*probe.options)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode().startswith("celeriac: not ready: lane 1, database: ")
        assert succeed("health", "--live", *probe.options) == "live\n"
        # WHEN the database is reachable again
        proxy.accept()
        # THEN it is ready again
        wait_until(lambda: health(*probe.options).returncode == 0, "the daemon to be ready", 30)


def test_a_daemon_on_all_addresses_is_asked_through_loopback(
    probe: Probe, make_daemon: Callable[..., Daemon], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # GIVEN a daemon that listens on all addresses, without a broker and a database
    nothing = f"sqlite:///{tmp_path_factory.mktemp('nothing')}/none"
    daemon = make_daemon("amqp://127.0.0.1:1//", nothing, "--listen", f"0.0.0.0:{probe.port}")
    daemon.start()
    daemon.wait_for('"message":"listening"')
    # THEN the same setting, as a variable, reaches it
    done = health("--live", CELERIAC_LISTEN=f"0.0.0.0:{probe.port}")
    assert (done.returncode, done.stdout) == (0, b"live\n"), done.stderr
    wait_until(lambda: b"lane 1, broker: " in health(*probe.options).stderr, "the reason", 10)


def test_settings_without_an_address() -> None:
    for options, expected in [
        ([], "listen: is not set"),
        (["--listen", f"{HOST}:0"], "give the port"),
        (["--listen", "localhost"], "is not an address and a port"),
    ]:
        done = health(*options)
        assert done.returncode == 1
        assert expected in done.stderr.decode()


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that sends these bytes to every client and keeps the connection open."""
    held: list[socket.socket] = []
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            held.append(connection)
            connection.recv(1 << 16)
            connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"{HOST}:{server.getsockname()[1]}"
        thread.join(5)
        for connection in held:
            connection.close()


def http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", "no answer from"),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer as the daemon does"),
        (http("200 OK", "hello"), "is not a daemon's: its /ready answers 200 OK"),
        (http("200 OK", '{"ready": false}'), "is not a daemon's"),
        (http("404 Not Found", ""), "is not a daemon's: its /ready answers 404"),
        (http("503 Service Unavailable", '{"ready": false, "reason": "\\u001b[2J"}'), "\ufffd[2J"),
        (http("200 OK", " " * (2 << 20)), "does not answer as the daemon does: length limit"),
    ],
    # The environment of the daemon has an id, and environments have a size limit.
    ids=["nothing", "ssh", "a text", "an object", "404", "control characters", "2 MiB"],
)
def test_other_servers_are_recognised(answer: bytes, expected: str) -> None:
    with answering(answer) as address:
        done = health("--listen", address, "--timeout", "500ms")
    assert done.returncode == 1
    assert expected in done.stderr.decode()
