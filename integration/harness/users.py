"""Users of RabbitMQ and of databases who have fewer permissions than the tests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

from harness.broker import Broker
from harness.daemon import REPOSITORY
from harness.database import Database
from harness.services import MariaDB, PostgreSQL, RabbitMQ, unique_name

#: The program's advice if a permission is missing.
ADVICE = "give the user the permissions that docs/security.md lists"

#: The document that lists the permissions that are sufficient.
SECURITY = (REPOSITORY / "docs" / "security.md").read_text()


def broker_rights(who: str) -> list[str]:
    """The configure, write and read permissions that the document lists for `who`."""
    [line] = re.findall(rf"^rabbitmqctl set_permissions -p VHOST {who} (.*)$", SECURITY, re.M)
    return [pattern.strip("'") for pattern in line.split()]


@contextmanager
def another_user(rabbitmq: RabbitMQ, broker: Broker, *permissions: str) -> Iterator[str]:
    """The URL of a user with these configure, write and read permissions in the virtual host."""
    name = f"celeriac_test_{os.getpid()}"
    vhost = broker.url.rpartition("/")[2]
    rabbitmq.control("add_user", name, "pass@word")
    try:
        rabbitmq.control("set_permissions", "-p", vhost, name, *permissions)
        host = broker.url.partition("@")[2]
        yield f"amqp://{name}:pass%40word@{host}"
    finally:
        rabbitmq.control("delete_user", name)


def with_login(url: str, user: str, password: str = "") -> str:
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    login = f"{user}:{password}" if password else user
    return parts._replace(netloc=f"{login}@{address}").geturl()


@contextmanager
def user_without_rights(
    database: Database, postgresql: PostgreSQL, mariadb: MariaDB
) -> Iterator[str]:
    """The URL of a user who may only read and write rows."""
    user, name = unique_name(), urlsplit(database.url).path[1:]
    parts = urlsplit(database.url)
    host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    url = urlunsplit(parts._replace(netloc=f"{user}:secret@{host}"))
    if database.engine == "postgresql":
        postgresql.sql(f"create role {user} login password 'secret'")
        for statement in (
            "revoke create on schema public from public",
            f"grant select, insert, update on all tables in schema public to {user}",
            f"grant usage on all sequences in schema public to {user}",
        ):
            database.execute(statement)
        try:
            yield url
        finally:
            database.execute(f"drop owned by {user}")
            postgresql.sql(f"drop role {user}")
    else:
        mariadb.sql(f"create user {user} identified by 'secret'")
        mariadb.sql(f"grant select, insert, update on {name}.* to {user}")
        try:
            yield url
        finally:
            mariadb.sql(f"drop user {user}")
