"""The permissions in RabbitMQ that `docs/operating.md` names are enough."""

from __future__ import annotations

import re
from collections.abc import Callable

from celery import Celery

import results
from broker import DEAD, EVENTS, RESULTS, Broker, Message
from daemon import REPOSITORY, Daemon
from database import Databases
from processes import wait_until
from services import RabbitMQ
from test_backend import another_user


def test_the_permissions_of_the_guide_are_enough(
    rabbitmq: RabbitMQ, databases: Databases, make_daemon: Callable[..., Daemon]
) -> None:
    guide = (REPOSITORY / "docs" / "operating.md").read_text()
    permissions = re.search(r"set_permissions .*? '(.*)' '(.*)' '(.*)'$", guide, re.MULTILINE)
    assert permissions, "the guide has the command"
    broker, database = Broker(rabbitmq.create()), databases.migrated("sqlite")
    with another_user(rabbitmq, broker, *permissions.groups()) as url:
        # WHEN a worker makes the queues and a daemon everything else
        app = Celery("test", broker=url, backend="celeriac://", set_as_current=False)
        app.backend.store_result("t1", 1, "SUCCESS")
        daemon = make_daemon(url, database.url, "--events")
        daemon.start()
        daemon.wait_for_consuming(times=2)
        broker.publish(results.result("t2"), Message(b"no result"))
        wait_until(lambda: broker.depth(DEAD) == 1, "the dead letter", 30)
        wait_until(lambda: set(database.statuses()) == {"t1", "t2"}, "both rows", 30)
        # THEN nobody was refused anything
        assert "ACCESS_REFUSED" not in daemon.output()
        assert "cannot be bound" not in daemon.output()
        assert daemon.stop() == 0
    assert broker.exists(EVENTS) and broker.depth(RESULTS) == 0
