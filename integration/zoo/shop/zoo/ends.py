"""Tasks that are ended from outside: revoked, terminated, expired, or by a time limit."""

import time

import celery
from celery import current_app, shared_task
from celery.exceptions import SoftTimeLimitExceeded

from .cases import NO_ROW, SEEN, called, echo, simple

#: In seconds. A task must have reached its `sleep` before, even on a busy machine.
SOFT_LIMIT, HARD_LIMIT = 2, 3


@shared_task(bind=True)
def sleep_until_terminated(self, signal_name):
    """Terminates itself, which happens while it is running."""
    current_app.control.revoke(self.request.id, terminate=True, signal=signal_name)
    time.sleep(60)


@shared_task(soft_time_limit=SOFT_LIMIT)
def sleep_softly(caught):
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        if not caught:
            raise
        return "cleaned up"


@shared_task(time_limit=HARD_LIMIT)
def sleep_too_long():
    time.sleep(30)


@shared_task
def sleep(seconds):
    time.sleep(seconds)


@shared_task(bind=True, time_limit=HARD_LIMIT)
def tell_and_sleep_too_long(self):
    self.update_state(state="PROGRESS", meta={"soon": "out of time"})
    time.sleep(30)


@shared_task(ignore_result=True, time_limit=HARD_LIMIT)
def sleep_unwanted():
    time.sleep(30)


@shared_task(acks_late=True, time_limit=HARD_LIMIT)
def sleep_late():
    time.sleep(30)


@shared_task(bind=True)
def revoke_running(self):
    """Revoking a task does not stop it if it is running."""
    current_app.control.revoke(self.request.id)
    time.sleep(1)
    return "unimpressed"


@shared_task(bind=True)
def retry_once_revoked(self):
    """Is revoked while it waits for its next attempt."""
    current_app.control.revoke(self.request.id)
    raise self.retry(countdown=1)


def revoke(task_id, **options):
    """Revokes a task, and waits until the one worker has replied."""
    current_app.control.revoke(task_id, reply=True, limit=1, **options)


def publish_expired(task_id):
    """The worker holds the message until its countdown ends; by then it has expired."""
    echo.apply_async(("late",), task_id=task_id, countdown=3, expires=2)
    return {task_id: "REVOKED"}


def publish_revoked(task_id):
    """The worker learns of this before the task arrives."""
    revoke(task_id)
    echo.apply_async(("revoked",), task_id=task_id)
    return {task_id: "REVOKED"}


def publish_revoked_waiting(task_id):
    echo.apply_async(("waiting",), task_id=task_id, countdown=1.5)
    revoke(task_id)
    return {task_id: "REVOKED"}


def publish_revoked_unwanted(task_id):
    revoke(task_id)
    echo.apply_async(("revoked",), task_id=task_id, ignore_result=True)
    return {task_id: SEEN if celery.VERSION >= (5, 6) else NO_ROW}


def publish_revoked_stamped(task_id):
    current_app.control.revoke_by_stamped_headers({"order": [task_id]}, reply=True, limit=1)
    signature = echo.s("stamped")
    signature.stamp(order=task_id)
    signature.apply_async(task_id=task_id)
    return {task_id: "REVOKED"}


STOCK = {
    "terminated": simple(sleep_until_terminated, "REVOKED", "SIGKILL"),
    "expired": publish_expired,
    "revoked": publish_revoked,
    "time_limit.hard": simple(sleep_too_long, "FAILURE"),
    "time_limit.soft": simple(sleep_softly, "FAILURE", False),
    "time_limit.soft_caught": simple(sleep_softly, "SUCCESS", True),
}

CASES = {
    **STOCK,
    "terminated.softly": simple(sleep_until_terminated, "REVOKED", "SIGTERM"),
    "time_limit.hard_told": simple(tell_and_sleep_too_long, "FAILURE"),
    "time_limit.hard_late": simple(sleep_late, "FAILURE"),
    "time_limit.hard_unwanted": simple(sleep_unwanted, NO_ROW),
    "time_limit.by_call": called(sleep, "FAILURE", (30,), time_limit=HARD_LIMIT),
    "time_limit.soft_by_call": called(sleep, "FAILURE", (30,), soft_time_limit=SOFT_LIMIT),
    "revoked.waiting": publish_revoked_waiting,
    "revoked.running": simple(revoke_running, SEEN),
    "revoked.unwanted": publish_revoked_unwanted,
}
#: The worker's main process can receive the next attempt before the state RETRY is stored.
LATE = {"late.revoked_retrying": simple(retry_once_revoked, SEEN)}
if celery.VERSION >= (5, 3):
    CASES["revoked.stamped"] = publish_revoked_stamped
