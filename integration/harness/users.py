"""Users of RabbitMQ with fewer permissions than the one that the tests run as."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from harness.broker import Broker
from harness.services import RabbitMQ


@contextmanager
def another_user(rabbitmq: RabbitMQ, broker: Broker, *permissions: str) -> Iterator[str]:
    """The URL of a user who has these permissions in the virtual host: configure, write, read."""
    name = f"celeriac_test_{os.getpid()}"
    vhost = broker.url.rpartition("/")[2]
    rabbitmq.control("add_user", name, "pass@word")
    try:
        rabbitmq.control("set_permissions", "-p", vhost, name, *permissions)
        host = broker.url.partition("@")[2]
        yield f"amqp://{name}:pass%40word@{host}"
    finally:
        rabbitmq.control("delete_user", name)
