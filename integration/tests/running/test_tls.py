"""TLS with real certificates to RabbitMQ, PostgreSQL and MariaDB, of servers and of clients.

The servers' certificate is only for `localhost`, so that 127.0.0.1 is a wrong name. The files are
read for each connection, so a renewed certificate is used without a restart.
"""

from __future__ import annotations

import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from harness import results
from harness.broker import Broker
from harness.certificates import TRADITIONAL, Authority
from harness.daemon import Daemon
from harness.database import Database, Databases
from harness.pipeline import Pipeline
from harness.services import HOST, RabbitMQ, Service, free_port, private, server_user

#: Nothing listens there.
NO_BROKER = f"amqp://guest:guest@{HOST}:1//"


@dataclass
class Files:
    """The certificates of one test, in a folder that every server can read."""

    folder: Path
    ours: Authority
    foreign: Authority

    def client(self, file: str, authority: Authority | None = None, **how: object) -> list[Path]:
        """The certificate and the key of a client; `how` are the options for creating them."""
        return list((authority or self.ours).issue("celeriac", file=file, **how))

    def server(self, days: int = 1, user: str | None = None) -> tuple[Path, Path]:
        """The certificate and the key of the server, in place of the previous ones."""
        paths = self.ours.issue("server", host="localhost", days=days)
        for path in paths:
            path.chmod(0o600)
            if user:
                shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
        return paths


@pytest.fixture
def files() -> Iterator[Files]:
    # Only pytest's user can read its own folders.
    folder = Path(tempfile.mkdtemp(prefix="celeriac_test_"))
    folder.chmod(0o755)
    yield Files(folder, Authority(folder, "ours"), Authority(folder, "foreign"))
    shutil.rmtree(folder)


def clients(files: Files) -> dict[str, tuple[list[Path], str]]:
    """Client files that do not work, and the error for each."""
    good = files.client("good")
    return {
        "of another authority": (files.client("other", files.foreign), "does not trust the client"),
        "expired": (files.client("expired", days=-1), "expired-certificate.pem has a certificate"),
        "locked": (files.client("locked", password=b"hunter2"), "locked-key.pem is encrypted"),
        "locked, as before": (
            files.client("old", form=TRADITIONAL, password=b"hunter2"),
            "old-key.pem is encrypted: write the key without a password",
        ),
        "of another key": ([good[0], files.client("x")[1]], "the key is not that of the certif"),
        "without a key": ([good[0], files.ours.path], "ours.pem has no private key in it: write"),
        "no certificate": ([good[1], good[1]], "good-key.pem has no certificate in it: write"),
        "missing": ([good[0], Path("/nowhere/key.pem")], "/nowhere/key.pem cannot be read"),
    }


#: The formats of a private key, all of which are accepted.
FORMS = {
    "PKCS #8": {},
    "PKCS #1": {"form": TRADITIONAL},
    "EC in PKCS #8": {"kind": "ec"},
    "EC in SEC 1": {"kind": "ec", "form": TRADITIONAL},
}


class Trial:
    """Starts a daemon for each URL and checks its log."""

    def __init__(self, make_daemon: Callable[..., Daemon]) -> None:
        self._make_daemon = make_daemon

    def fails(self, broker: str, database: str, words: str) -> None:
        daemon = self._make_daemon(broker, database)
        daemon.start()
        daemon.wait_for(words, 20)
        assert "hunter2" not in daemon.output()
        daemon.kill()

    def works(self, pipeline: Pipeline) -> None:
        """A result is stored."""
        pipeline.daemon.start_consuming()
        task_id = results.new_id()
        pipeline.broker.publish(results.result(task_id))
        pipeline.wait_for_rows({task_id: "SUCCESS"})
        assert pipeline.daemon.stop() == 0


@pytest.fixture
def trial(make_daemon: Callable[..., Daemon]) -> Trial:
    return Trial(make_daemon)


# The broker ---------------------------------------------------------------------------------


def test_tls_to_rabbitmq(
    files: Files, databases: Databases, make_daemon: Callable[..., Daemon], trial: Trial
) -> None:
    certificate, key = files.server()
    port = free_port()
    database = databases.migrated("sqlite")

    def settings(mutual: str) -> list[str]:
        return [
            f"listeners.ssl.1 = {HOST}:{port}",
            f"ssl_options.cacertfile = {files.ours.path}",
            f"ssl_options.certfile = {certificate}",
            f"ssl_options.keyfile = {key}",
            "ssl_options.verify = verify_peer",
            f"ssl_options.fail_if_no_peer_cert = {mutual}",
        ]

    def url(host: str = "localhost", ca: Path | None = files.ours.path, *client: Path) -> str:
        names = ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"]
        given = zip(names, [ca, *client], strict=False)
        query = urlencode({name: path for name, path in given if path})
        return f"amqps://guest:guest@{host}:{port}//?{query}"

    def pipeline(server: Service, url: str) -> Pipeline:
        return Pipeline(Broker(server.url), database, make_daemon(url, database.url))

    # GIVEN a broker that does not require client certificates
    with private("rabbitmq", *settings("false")) as server:
        # THEN results are stored
        trial.works(pipeline(server, url()))
        # THEN a broker other than the intended one is not used
        untrusted = "an authority that is not trusted here: name the authority's certificate in ssl"
        for broker, words in {
            url(ca=files.foreign.path): untrusted,
            url(ca=None): untrusted,
            url(HOST): "is not for the host in the URL",
            url(ca=Path("/nowhere/ca.pem")): "/nowhere/ca.pem cannot be read (No such file",
            url(ca=files.client("good")[1]): "good-key.pem has no certificate in it: write",
            server.url.replace("amqp", "amqps", 1): "does not speak TLS on this port",
        }.items():
            trial.fails(broker, database.url, words)
    # GIVEN a broker that requires client certificates
    with private("rabbitmq", *settings("true")) as server:
        good = files.client("good")
        for form in FORMS.values():
            mutual = url("localhost", files.ours.path, *files.client("form", **form))
            trial.works(pipeline(server, mutual))
        asked = "the server asks for a client's certificate: name it in ssl_certfile and ssl_keyfile"
        trial.fails(url(), database.url, asked)
        for client, words in clients(files).values():
            trial.fails(url("localhost", files.ours.path, *client), database.url, words)
        # WHEN a client's certificate expires while the daemon is running, and is renewed
        files.client("renewed", days=-1)
        names = [files.folder / f"renewed-{part}.pem" for part in ("certificate", "key")]
        daemon = make_daemon(url("localhost", files.ours.path, *names), database.url)
        daemon.start()
        daemon.wait_for("renewed-certificate.pem has a certificate that has expired on")
        files.client("renewed")
        # THEN the daemon uses the new one
        daemon.wait_for_consuming()
        assert daemon.stop() == 0
        # WHEN the server's certificate expires
        server.kill()
        files.server(days=-1)
        server.start()
        expired = url("localhost", files.ours.path, *good)
        trial.fails(expired, database.url, "the server's certificate has expired: renew it")


# The databases ------------------------------------------------------------------------------

PG_HBA = """\
hostssl all mutual 127.0.0.1/32 trust clientcert=verify-ca
hostssl all plain 127.0.0.1/32 trust
host all postgres 127.0.0.1/32 trust
"""

#: For each database the URL parameters that set what Celeriac verifies, and its files.
VERIFIES = {
    "postgresql": ({"sslmode": "verify-full"}, ["sslrootcert", "sslcert", "sslkey"]),
    "mariadb": ({"ssl-mode": "VERIFY_IDENTITY"}, ["ssl-ca", "ssl-cert", "ssl-key"]),
}


@pytest.mark.parametrize("engine", VERIFIES)
def test_tls_to_the_database(
    engine: str,
    files: Files,
    rabbitmq: RabbitMQ,
    databases: Databases,
    make_daemon: Callable[..., Daemon],
    trial: Trial,
) -> None:
    user = server_user("postgres" if engine == "postgresql" else "mysql")
    certificate, key = files.server(user=user)
    if engine == "postgresql":
        hba = files.folder / "pg_hba.conf"
        hba.write_text(PG_HBA)
        hba.chmod(0o644)
        options = {"ssl": "on", "ssl_ca_file": files.ours.path, "hba_file": hba}
        start = private(
            engine, **options, ssl_cert_file=certificate, ssl_key_file=key
        )
        users = "create role mutual superuser login; create role plain superuser login"
        reload = "select pg_reload_conf()"
    else:
        options = {"ssl-ca": files.ours.path, "ssl-cert": certificate, "ssl-key": key}
        start = private(engine, *(f"--{name}={path}" for name, path in options.items()))
        users = (
            "create user mutual@'%' require x509; grant all on *.* to mutual@'%'; "
            "create user plain@'%' require ssl; grant all on *.* to plain@'%'"
        )
        reload = "flush ssl"
    how, names = VERIFIES[engine]
    with start as server:
        server.sql(users)
        database = Database(server.create())
        databases.migrate(database)
        parts = urlsplit(database.url)

        def url(login: str, ca: Path | None, *client: Path, host: str = "localhost") -> str:
            given = zip(names, [ca, *client], strict=False)
            query = urlencode(how | {name: path for name, path in given if path})
            return f"{parts.scheme}://{login}@{host}:{parts.port}{parts.path}?{query}"

        def pipeline(url: str) -> Pipeline:
            broker = Broker(rabbitmq.create())
            return Pipeline(broker, database, make_daemon(broker.url, url))

        # THEN results are stored, with and without a client certificate
        ours = files.ours.path
        trial.works(pipeline(url("plain", ours)))
        for form in FORMS.values():
            trial.works(pipeline(url("mutual", ours, *files.client("form", **form))))
        # THEN a server other than the intended one is not used
        untrusted = f"not trusted here: name the authority's certificate in {names[0]}"
        asked = {
            "postgresql": "connection requires a valid client certificate (28000): check",
            "mariadb": "(28000): check the user and the password in the database URL, and the cl",
        }[engine]
        for database_url, words in {
            url("plain", files.foreign.path): untrusted,
            url("plain", None): untrusted,
            url("plain", ours, host=HOST): "is not for the host in the URL",
            url("plain", Path("/nowhere/ca.pem")): "/nowhere/ca.pem cannot be read (No such file",
            url("plain", files.client("good")[1]): "good-key.pem has no certificate in it: write",
            url("mutual", ours): asked,
        }.items():
            trial.fails(NO_BROKER, database_url, words)
        for client, words in clients(files).values():
            trial.fails(NO_BROKER, url("mutual", ours, *client), words)
        # WHEN the server's certificate expires
        files.server(days=-1, user=user)
        server.sql(reload)
        daemon = pipeline(url("plain", ours)).daemon
        daemon.start()
        daemon.wait_for("the server's certificate has expired: renew it on the server")
        # THEN this is logged once, and the daemon continues after it is renewed
        files.server(user=user)
        server.sql(reload)
        daemon.wait_for_consuming()
        assert daemon.output().count("has expired") == 1
        assert daemon.stop() == 0
