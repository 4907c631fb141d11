"""Finds or starts the servers that the tests and the demo need. Standard library only.

A running server is used if it answers at its standard address, or at the one in
`CELERIAC_TEST_BROKER`, `CELERIAC_TEST_POSTGRES` or `CELERIAC_TEST_MYSQL`, and lets us create a
virtual host or a database. Otherwise a private server is started in a temporary folder on a free
port. Everything created is called `celeriac_test_…` and removed at the end; only processes that
were started here are stopped.

    python -m harness.services run [--private] [--only rabbitmq,postgresql,mariadb] -- CMD…

runs CMD with those three variables set to a new virtual host and new databases. Like `--private`,
`CELERIAC_TEST_PRIVATE=1` does not look for running servers.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from harness.processes import Failure, Process, end_on_terminate

HOST = "127.0.0.1"


def unique_name() -> str:
    return f"celeriac_test_{secrets.token_hex(5)}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], **options: object) -> str:
    """Runs a command to its end and returns its output; if it fails, the error quotes its output.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(f"could not run {command[0]}: {error}") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise Failure(f"{command[0]} failed with {done.returncode}: {words}")
    return done.stdout


def root_command() -> list[str] | None:
    """The prefix that runs a command as root, or None if that is not possible."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if (
        sudo
        and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return [sudo, "-n"]
    return None


def install(package: str) -> None:
    """Installs a Debian package, or asks the user to do it."""
    root = root_command()
    apt_get = shutil.which("apt-get")
    if root is None or apt_get is None:
        raise Failure(
            f"`{package}` is missing: install it (`apt-get install {package}`) and try again"
        )
    say(f"installing {package} with apt-get, because it is missing")
    quiet = [*root, "env", "DEBIAN_FRONTEND=noninteractive", apt_get, "-qq"]
    command = [*quiet, "install", "--yes", "--no-install-recommends", package]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        run([*quiet, "update"])
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def executable(name: str, package: str, folders: Sequence[str] = ()) -> str:
    """The path of a server's program, which is installed if it is missing."""
    for attempt in ("look", "install"):
        for folder in folders:
            for path in sorted(Path("/").glob(folder.lstrip("/")), reverse=True):
                if os.access(path / name, os.X_OK):
                    return str(path / name)
        if found := shutil.which(name):
            return found
        if attempt == "look":
            install(package)
    raise Failure(f"`{package}` is installed, but `{name}` was not found")


def server_user(name: str) -> str | None:
    """The account for a server if we are root, because some servers refuse to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(name)
    except KeyError:
        return "nobody"
    return name


class Service:
    """A server in which we create virtual hosts or databases, and those that we have created."""

    name: str
    variable: str

    def __init__(self, url: str) -> None:
        self.url = url
        self._created: list[str] = []

    def create(self) -> str:
        """Creates a virtual host or a database and returns its URL."""
        name = unique_name()
        self._created.append(name)
        self._create(name)
        return self.url_of(name)

    def url_of(self, name: str) -> str:
        return urlsplit(self.url)._replace(path=f"/{quote(name, safe='')}").geturl()

    def answers(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """Removes everything created. A failure does not prevent the rest from being removed."""
        failures = []
        while self._created:
            some, self._created = self._created[:20], self._created[20:]
            try:
                self._drop(some)
            except Failure as failure:
                failures.append(str(failure))
        if failures:
            raise Failure("could not clean up: " + "; ".join(failures))

    def count(self) -> int:
        """How many virtual hosts or databases were created and not yet removed."""
        return len(self._created)

    def remove_since(self, count: int) -> None:
        """Removes everything but the first `count`."""
        self._drop(self._created[count:])
        del self._created[count:]

    def environment(self) -> dict[str, str]:
        """The variables with which a child process finds this server."""
        return {self.variable: self.create()}

    def _create(self, name: str) -> None:
        raise NotImplementedError

    def _drop(self, names: Sequence[str]) -> None:
        raise NotImplementedError


class Private:
    """A server in a temporary folder, which can be stopped, killed and started again.

    A mixin for a `Service`; `start()` returns once the server answers.
    """

    process: Process
    folder: Path

    def start(self) -> None:
        self.process.start()
        try:
            self.process.wait_while_alive(self.answers, "answer", 90)
        except Failure:
            self.process.kill()
            raise

    def stop(self) -> None:
        self.process.stop(60)

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        """Stops the server and removes its folder with everything in it."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder)

    def _make_folder(self, user: str | None) -> None:
        """Creates a folder that the server can write to. Its path is short enough for Unix sockets.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="celeriac_test_"))
        if user:
            shutil.chown(self.folder, user, pwd.getpwnam(user).pw_gid)


# RabbitMQ -----------------------------------------------------------------------------------

#: How many virtual hosts are created or removed together.
AT_ONCE = 3


def amqp_opens(url: str) -> bool:
    """Whether a broker at `url` accepts our credentials and opens the virtual host.

    These are the first four methods of an AMQP 0-9-1 connection, written out because the standard
    library has no client. That the port accepts connections is not enough.
    """
    parts = urlsplit(url)
    login = f"\0{unquote(parts.username or 'guest')}\0{unquote(parts.password or 'guest')}"
    vhost = (unquote(parts.path[1:]) or "/").encode()

    def method(class_id: int, method_id: int, arguments: bytes) -> bytes:
        payload = struct.pack(">HH", class_id, method_id) + arguments
        return struct.pack(">BHI", 1, 0, len(payload)) + payload + b"\xce"

    try:
        with socket.create_connection(
            (parts.hostname or HOST, parts.port or 5672), 5
        ) as connection:
            stream = connection.makefile("rb")

            def received() -> tuple[int, int]:
                _type, _channel, size = struct.unpack(">BHI", stream.read(7))
                return struct.unpack(">HH", stream.read(size + 1)[:4])

            connection.sendall(b"AMQP\x00\x00\x09\x01")
            if received() != (10, 10):
                return False
            response = struct.pack(">I", len(login)) + login.encode()
            connection.sendall(method(10, 11, b"\0\0\0\0\x05PLAIN" + response + b"\x05en_US"))
            if received() != (10, 30):
                return False
            connection.sendall(method(10, 31, struct.pack(">HIH", 2047, 131072, 0)))
            connection.sendall(method(10, 40, bytes([len(vhost)]) + vhost + b"\0\0"))
            if received() != (10, 41):
                return False
            connection.sendall(method(10, 50, b"\0\0\0\0\0\0\0"))
            return received() == (10, 51)
    except (OSError, struct.error):
        return False


class RabbitMQ(Service):
    """A broker whose virtual hosts are created with `rabbitmqctl`, which needs no plugin."""

    name = "rabbitmq"
    variable = "CELERIAC_TEST_BROKER"
    standard = f"amqp://guest:guest@{HOST}:5672/"

    def __init__(self, url: str, control: Sequence[str], control_env: Mapping[str, str]) -> None:
        super().__init__(url)
        self._control = list(control)
        self._control_env = dict(control_env)
        self._spare: list[str] = []
        self._unneeded: list[str] = []

    @classmethod
    def find(cls, url: str) -> RabbitMQ | None:
        """The broker at `url`, if `rabbitmqctl` controls that same broker."""
        if not amqp_opens(url):
            return None
        described = os.environ.get("CELERIAC_TEST_RABBITMQCTL")
        if described:
            node = json.loads(Path(described).read_text())
            candidates = [(node["control"], node["env"])]
        else:
            root = root_command()
            commands = [["rabbitmqctl"]] + ([[*root, "rabbitmqctl"]] if root else [])
            candidates = [(command, dict(os.environ)) for command in commands]
        for control, env in candidates:
            broker = cls(url, control, env)
            try:
                fresh = broker.create()
            except Failure:
                continue
            if amqp_opens(fresh):
                broker.remove_since(0)
                return broker
            broker.close()
        return None

    def answers(self) -> bool:
        return amqp_opens(self.url)

    def control(self, *arguments: str) -> str:
        return run([*self._control, "--quiet", *arguments], env=self._control_env, cwd="/")

    def environment(self) -> dict[str, str]:
        described = os.environ.get("CELERIAC_TEST_RABBITMQCTL")
        return super().environment() | (
            {"CELERIAC_TEST_RABBITMQCTL": described} if described else {}
        )

    # `rabbitmqctl` needs half a second of CPU time, more than the rest of many tests. So virtual
    # hosts are created in advance and removed together.

    def create(self) -> str:
        if not self._spare:
            names = [unique_name() for _ in range(AT_ONCE)]
            everything = ", ".join(['<<".*">>'] * 3)
            self._for_each(
                names,
                "ok = rabbit_vhost:add(V, U), "
                f"ok = rabbit_auth_backend_internal:set_permissions(U, V, {everything}, U)",
            )
            self._spare = names
        name = self._spare.pop()
        self._created.append(name)
        return self.url_of(name)

    def remove_since(self, count: int) -> None:
        self._unneeded += self._created[count:]
        del self._created[count:]
        if len(self._unneeded) > AT_ONCE:
            self._remove_unneeded()

    def close(self) -> None:
        self._unneeded += self._created + self._spare
        self._created, self._spare = [], []
        if self._unneeded:
            self._remove_unneeded()

    def _remove_unneeded(self) -> None:
        self._for_each(self._unneeded, "rabbit_vhost:delete(V, U)")
        self._unneeded = []

    def _for_each(self, names: Sequence[str], code: str) -> None:
        """Runs Erlang code in the broker for every virtual host `V`, with our user as `U`."""
        user = unquote(urlsplit(self.url).username or "guest")
        hosts = ", ".join(f'<<"{name}">>' for name in names)
        self.control("eval", f'U = <<"{user}">>, [begin {code} end || V <- [{hosts}]].')


class PrivateRabbitMQ(Private, RabbitMQ):
    """A node with its own name, cookie, data and Erlang port mapper.

    Otherwise the node would start the port mapper (epmd) as a daemon that outlives it.
    """

    def __init__(self, *settings: str) -> None:
        """`settings` are additional lines for its `rabbitmq.conf`."""
        # Debian's wrapper in PATH switches to the user `rabbitmq`; these scripts do not.
        scripts = ["/usr/lib/rabbitmq/bin", "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"]
        server = executable("rabbitmq-server", "rabbitmq-server", scripts)
        control = executable("rabbitmqctl", "rabbitmq-server", scripts)
        self._make_folder(None)
        port, self._epmd_port = free_port(), free_port()
        node = f"{unique_name()}@localhost"
        for name in ("rabbitmq-env.conf", "rabbitmq.conf", "enabled_plugins"):
            (self.folder / name).touch()
        (self.folder / "enabled_plugins").write_text("[].\n")
        # Test machines can have little free disk space.
        lines = ["disk_free_limit.absolute = 50MB", *settings]
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RABBITMQ_", "ERL_", "CELERIAC_"))
        } | {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": node,
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
        }
        RabbitMQ.__init__(self, f"amqp://guest:guest@{HOST}:{port}/", [control], env)
        self._epmd = Process(
            "epmd",
            [executable("epmd", "erlang-base", ["/usr/lib/erlang/erts-*/bin"])],
            self.folder / "epmd.log",
            env=env,
        )
        self.process = Process(
            "private RabbitMQ", [server], self.folder / "server.log", env=env, cwd=self.folder
        )

    def start(self) -> None:
        if not self._epmd.is_alive():
            self._epmd.start()
            self._epmd.wait_while_alive(lambda: port_is_open(self._epmd_port), "open port", 10)
        super().start()

    def close(self) -> None:
        """Kills the node, because a shutdown can hang on a queue in trouble."""
        self.kill()
        self._epmd.kill()
        shutil.rmtree(self.folder)

    def environment(self) -> dict[str, str]:
        """Adds how to call `rabbitmqctl` for this node, which needs its cookie."""
        described = self.folder / "node.json"
        described.write_text(json.dumps({"control": self._control, "env": self._control_env}))
        return super().environment() | {"CELERIAC_TEST_RABBITMQCTL": str(described)}


def port_is_open(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True


# PostgreSQL ---------------------------------------------------------------------------------


class SqlService(Service):
    """A server that is used with SQL."""

    port: int

    @classmethod
    def find(cls, url: str) -> Self | None:
        """The server at `url`, if it lets us create a database."""
        if not port_answers(url, cls.port):
            return None
        server = cls(url)
        try:
            server.create()
        except Failure:
            return None
        server.close()
        return server

    def answers(self) -> bool:
        try:
            self.sql("select 1")
        except Failure:
            return False
        return True

    def sql(self, *statements: str) -> str:
        raise NotImplementedError


class PostgreSQL(SqlService):
    name = "postgresql"
    port = 5432
    variable = "CELERIAC_TEST_POSTGRES"
    standard = f"postgres://postgres@{HOST}:5432/postgres"

    def sql(self, *statements: str) -> str:
        client = executable("psql", "postgresql-client", ["/usr/lib/postgresql/*/bin"])
        env = os.environ | {"PGCONNECT_TIMEOUT": "5"}
        command = [client, "-XqAtw", "-v", "ON_ERROR_STOP=1", "-d", self.url]
        for statement in statements:
            command += ["-c", statement]
        return run(command, env=env)

    def _create(self, name: str) -> None:
        # template0 has no sessions that could block this, and allows UTF-8 on every server.
        self.sql(f"create database {name} template template0 encoding 'UTF8'")

    def copy(self, url: str) -> str:
        """Copies one of our databases, which must not be in use."""
        name = unique_name()
        self._created.append(name)
        self.sql(f"create database {name} template {urlsplit(url).path[1:]}")
        return self.url_of(name)

    def _drop(self, names: Sequence[str]) -> None:
        self.sql(*(f"drop database if exists {name} with (force)" for name in names))


class PrivatePostgreSQL(Private, PostgreSQL):
    """A private PostgreSQL. It runs as an unprivileged user, because it refuses root."""

    def __init__(self, **more_options: str | Path) -> None:
        folders = ["/usr/lib/postgresql/*/bin"]
        server = executable("postgres", "postgresql", folders)
        initdb = executable("initdb", "postgresql", folders)
        user = server_user("postgres")
        self._make_folder(user)
        port = free_port()
        data = self.folder / "data"
        identity = {"user": user, "group": user, "extra_groups": []} if user else {}
        run(
            [
                initdb,
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "-N",
                "-D",
                data,
            ],
            cwd=self.folder,
            **identity,
        )
        PostgreSQL.__init__(self, f"postgres://postgres@{HOST}:{port}/postgres")
        # fsync protects against power failures. The tests only kill processes.
        options = {
            "port": port,
            "listen_addresses": HOST,
            "unix_socket_directories": self.folder,
            "fsync": "off",
            **more_options,
        }
        settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        self.process = Process(
            "private PostgreSQL",
            [server, "-D", data, *settings],
            self.folder / "server.log",
            cwd=self.folder,
            user=user,
        )

    def stop(self) -> None:
        """Performs a fast shutdown, which ends sessions instead of waiting for them."""
        self.process.stop(60, signal.SIGINT)


# MariaDB and MySQL --------------------------------------------------------------------------


class MariaDB(SqlService):
    name = "mariadb"
    port = 3306
    variable = "CELERIAC_TEST_MYSQL"
    standard = f"mysql://root@{HOST}:3306/mysql"

    def _command(self, client: str) -> list[str]:
        parts = urlsplit(self.url)
        program = shutil.which(client) or executable(
            client.replace("mariadb", "mysql", 1), "mariadb-client"
        )
        return [
            program,
            "--no-defaults",
            "--protocol=tcp",
            f"--host={parts.hostname or HOST}",
            f"--port={parts.port or 3306}",
            f"--user={unquote(parts.username or 'root')}",
        ]

    def _env(self) -> dict[str, str]:
        return os.environ | {"MYSQL_PWD": unquote(urlsplit(self.url).password or "")}

    def sql(self, *statements: str) -> str:
        command = [*self._command("mariadb"), "--batch", "--skip-column-names"]
        text = "; ".join(statements)
        return run([*command, "--connect-timeout=5", "-e", text], env=self._env())

    def _create(self, name: str) -> None:
        self.sql(f"create database {name} character set utf8mb4")

    def copy(self, url: str) -> str:
        """Copies one of our databases through a dump, because MariaDB has no templates."""
        fresh = self.create()
        dump = run([*self._command("mariadb-dump"), urlsplit(url).path[1:]], env=self._env())
        command = [*self._command("mariadb"), urlsplit(fresh).path[1:]]
        subprocess.run(command, input=dump, text=True, env=self._env(), check=True)
        return fresh

    def _drop(self, names: Sequence[str]) -> None:
        self.sql(*(f"drop database if exists {name}" for name in names))


class PrivateMariaDB(Private, MariaDB):
    def __init__(self, *more_options: str) -> None:
        server = executable("mariadbd", "mariadb-server", ["/usr/sbin"])
        install_db = executable("mariadb-install-db", "mariadb-server")
        user = server_user("mysql")
        self._make_folder(user)
        port = free_port()
        data = self.folder / "data"
        identity = {"user": user, "group": user, "extra_groups": []} if user else {}
        run(
            [
                install_db,
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                f"--datadir={data}",
            ],
            cwd=self.folder,
            **identity,
        )
        MariaDB.__init__(self, f"mysql://root@{HOST}:{port}/mysql")
        self.process = Process(
            "private MariaDB",
            [
                server,
                "--no-defaults",
                f"--datadir={data}",
                f"--port={port}",
                f"--socket={self.folder / 'socket'}",
                f"--pid-file={self.folder / 'pid'}",
                f"--bind-address={HOST}",
                "--innodb-flush-log-at-trx-commit=2",
                *more_options,
            ],
            self.folder / "server.log",
            cwd=self.folder,
            user=user,
        )


def port_answers(url: str, standard_port: int) -> bool:
    """Checked first, so that a client program is only needed if there is a server."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or HOST, parts.port or standard_port), 5).close()
    except OSError:
        return False
    return True


# Finding and starting -----------------------------------------------------------------------

KINDS: dict[str, tuple[type[Service], type[Private]]] = {
    "rabbitmq": (RabbitMQ, PrivateRabbitMQ),
    "postgresql": (PostgreSQL, PrivatePostgreSQL),
    "mariadb": (MariaDB, PrivateMariaDB),
}


@contextmanager
def private(kind: str, *settings: str, **more_settings: str | Path) -> Iterator[Service]:
    """A private server that runs until the end of the block, with settings of its kind."""
    service = KINDS[kind][1](*settings, **more_settings)
    try:
        service.start()
        yield service
    finally:
        service.close()


@contextmanager
def service(kind: str, *, only_private: bool = False) -> Iterator[Service]:
    """A server until the end of the block: a running one, or else a private one."""
    found_class, _ = KINDS[kind]
    named = os.environ.get(found_class.variable)
    only_private = only_private or os.environ.get("CELERIAC_TEST_PRIVATE") == "1"
    found = None
    if named or not only_private:
        found = found_class.find(named or found_class.standard)
    if named and found is None:
        raise Failure(
            f"{found_class.variable} names a server that does not answer or does not let us create "
            "anything: correct it, or unset it to have a private server started"
        )
    if found is None:
        say(f"starting a private {kind}")
        with private(kind) as started:
            yield started
        return
    try:
        yield found
    finally:
        found.close()


def run_to_the_end(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Runs a command and returns its exit status. A signal ends the command, not this program."""
    try:
        child = subprocess.Popen(command, env=env)
    except OSError as error:
        raise Failure(f"could not run {command[0]}: {error}") from error
    signal.signal(signal.SIGTERM, lambda _number, _frame: child.terminate())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            # Ctrl-C has interrupted the command too.
            continue


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs a command with the servers that it needs.")
    actions = parser.add_subparsers(dest="action", required=True)
    run_action = actions.add_parser("run", help="run a command and pass on its exit status")
    run_action.add_argument(
        "--private", action="store_true", help="do not use running servers"
    )
    run_action.add_argument(
        "--only", default=",".join(KINDS), help="servers to provide, comma-separated"
    )
    run_action.add_argument("command", nargs="+", metavar="CMD")
    options = parser.parse_args()
    kinds = options.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(
            f"unknown server: {', '.join(sorted(unknown))}; choose from {', '.join(KINDS)}"
        )
    end_on_terminate()
    try:
        with ExitStack() as stack:
            env = dict(os.environ)
            for kind in kinds:
                provided = stack.enter_context(service(kind, only_private=options.private))
                env |= provided.environment()
            return run_to_the_end(options.command, env)
    except Failure as failure:
        say(f"services.py: {failure}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
