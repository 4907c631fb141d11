"""TLS with real certificates: to RabbitMQ, PostgreSQL and MariaDB, of servers and of clients.

The servers' certificate is for `localhost` alone, so that 127.0.0.1 is a wrong name for them.
Certificates are read again with each connection.
"""

from __future__ import annotations

import pwd
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import pytest

import results
from broker import Broker
from certificates import TRADITIONAL, Authority
from daemon import Daemon
from database import Database, Databases
from pipeline import Pipeline
from services import (
    HOST,
    MariaDB,
    PostgreSQL,
    PrivateMariaDB,
    PrivatePostgreSQL,
    PrivateRabbitMQ,
    RabbitMQ,
    free_port,
    private,
    server_user,
)


@dataclass
class Files:
    """The certificates of one run, in a folder that every server can read."""

    folder: Path
    ours: Authority
    foreign: Authority

    def client(self, file: str, authority: Authority | None = None, **how: object) -> dict[str, Path]:
        """The certificate and the key of a client, made as `how` says."""
        authority = authority or self.ours
        certificate, key = authority.issue("celeriac", file=file, **how)
        return {"certificate": certificate, "key": key}

    def renew_server(self, days: int = 1, user: str | None = None) -> tuple[Path, Path]:
        """Puts a new certificate of the server into the place of the old one."""
        paths = self.ours.issue("server", host="localhost", days=days)
        for path in paths:
            path.chmod(0o600)
            if user:
                shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
        return paths


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    return Files(folder, Authority(folder, "ours"), Authority(folder, "foreign"))


#: Clients' files that are not as they should be, and what is said of them.
CLIENTS = {
    "no client certificate": (lambda files: {}, None),
    "a certificate of another authority": (
        lambda files: files.client("other", files.foreign),
        None,
    ),
    "an expired certificate": (lambda files: files.client("expired", days=-1), "has expired"),
    "a key with a password": (
        lambda files: files.client("locked", password=b"hunter2"),
        "locked-key.pem is encrypted: write it without a password (`openssl pkey -in",
    ),
    "the key of another certificate": (
        lambda files: {**files.client("one"), "key": files.client("two")["key"]},
        "is not that of the certificate",
    ),
    "no key in the file": (
        lambda files: {**files.client("one"), "key": files.ours.path},
        "ours.pem has no private key in it",
    ),
    "no certificate in the file": (
        lambda files: {**files.client("one"), "certificate": files.client("one")["key"]},
        "one-key.pem has no certificate in it",
    ),
    "no such file": (
        lambda files: {**files.client("one"), "key": Path("/nowhere/key.pem")},
        "/nowhere/key.pem cannot be read",
    ),
}
