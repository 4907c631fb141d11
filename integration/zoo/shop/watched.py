"""Tasks for the tests of events, with the status of each if only its events are known.

They are not part of the zoo, because they need two workers, and some wait for a file.
"""

import time
from pathlib import Path

from celery import shared_task

from .zoo import arguments, ends, requests, states
from .zoo.cases import break_down, called, echo, simple, task_id_of


@shared_task(bind=True)
def tell_by_event(self, path):
    """Sends an event of the application, and waits until the file exists."""
    self.send_event("task-progress", done=50, of=100, name="a name of its own")
    wait_for_file(path)
    return "told"


@shared_task(bind=True)
def retry_at_nobodys(self):
    raise self.retry(exc=ValueError("later"), queue="nobody")


@shared_task
def hold(path):
    wait_for_file(path)
    return "held"


def wait_for_file(path):
    while not Path(path).exists():
        time.sleep(0.05)


def publish_held(run, path):
    """Two tasks for the two processes of a worker, one that has to wait for them, and one in a
    queue without a consumer.
    """
    ids = {name: task_id_of(run, name) for name in ("told", "held", "waiting", "nobody's")}
    tell_by_event.apply_async((path,), task_id=ids["told"])
    hold.apply_async((path,), task_id=ids["held"])
    echo.apply_async(("waiting",), {"key": "é"}, task_id=ids["waiting"])
    echo.apply_async(("nobody's",), task_id=ids["nobody's"], queue="nobody")
    return ids


CASES = {
    "expired": ends.publish_expired,
    "time_limit": simple(ends.sleep_too_long, "FAILURE"),
    "terminated": simple(ends.sleep_until_terminated, "REVOKED", "SIGKILL"),
    "revoked": ends.publish_revoked,
    "success": called(echo, "SUCCESS", (1, "two", None), {"three": [3.5]}),
    "success.long": called(echo, "SUCCESS", ("x" * 5000, list(range(500)))),
    "success.unicode": called(echo, "SUCCESS", ("crème 🥬 \\ ' \" \n", {"k": b"\xff"})),
    "success.arguments_given": called(
        arguments.count_arguments, "SUCCESS", ("secret",), argsrepr="('***',)", kwargsrepr="{}"
    ),
    "failure": simple(break_down, "FAILURE"),
    "failure.unwanted": simple(states.unwanted, "FAILURE", "fail"),
    "success.unwanted": simple(states.unwanted, "SUCCESS"),
    "retry": simple(states.retry_then, "SUCCESS", 1, "after a retry"),
    "retry.in_vain": simple(states.retry_for_ever, "FAILURE", True),
    "retry.waiting": simple(retry_at_nobodys, "RETRY"),
    "retry.elsewhere": simple(states.retry_elsewhere, "SUCCESS"),
    "rejected": simple(states.reject, "REJECTED"),
    "ignored": simple(states.ignore, "STARTED"),
    "shadowed": called(echo, "SUCCESS", ("shadowed",), shadow="in the shadow"),
    "unregistered": requests.publish_unregistered,
}


def publish_all(run):
    return {name: publish(task_id_of(run, name)) for name, publish in CASES.items()}
