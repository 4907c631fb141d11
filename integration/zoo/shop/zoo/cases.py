"""Used by all cases: ids derived from the name of a run, and ways to publish."""

import datetime
import uuid

from celery import current_app, shared_task

ZOO = uuid.UUID("5a2b8f54-3c0f-4c53-9d0e-0f4f6d1f7c11")

#: The task has no row.
NO_ROW = None

#: Any final state; which one depends on the serializer or on the version of Celery.
ENDS = "ENDS"

#: Any state; which one depends on the version of Celery.
SEEN = "SEEN"

#: The task may have a row.
MAYBE = "MAYBE"

#: The delay before a retry, in seconds. With no delay another process may store the end of the
#: next attempt before this one has stored RETRY, and with django-db the later write remains.
SOON = 0.5


def task_id_of(run, name):
    return str(uuid.uuid5(ZOO, f"{run}/{name}"))


def child_id_of(parent_id, name):
    return str(uuid.uuid5(uuid.UUID(parent_id), name))


def children_of(parent_id, *names):
    return [child_id_of(parent_id, name) for name in names]


def simple(task, status, *args, **options):
    """A case with one task that is published once."""

    def publish(task_id):
        task.apply_async(args, task_id=task_id, **options)
        return {task_id: status}

    return publish


def called(task, status, args=(), kwargs=None, **options):
    """The same with keyword arguments, or with a sequence of arguments."""

    def publish(task_id):
        task.apply_async(args, kwargs, task_id=task_id, **options)
        return {task_id: status}

    return publish


def spawning(task, names, status="SUCCESS", *args):
    """A task that starts successful children with derived ids."""

    def publish(task_id):
        task.apply_async(args, task_id=task_id)
        children = {child_id_of(task_id, name): "SUCCESS" for name in names}
        return {task_id: status, **children}

    return publish


def send_body(task_id, body, headers):
    """Publishes a message as a client other than Celery would."""
    with current_app.producer_or_acquire() as producer:
        producer.publish(
            body,
            serializer="json",
            exchange="",
            routing_key="celery",
            headers=headers,
            correlation_id=task_id,
            reply_to="celeriac.results",
        )


def in_an_hour():
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)


@shared_task
def echo(*args, **kwargs):
    return [args, kwargs]


@shared_task
def add(left, right):
    return left + right


@shared_task
def total(numbers):
    return sum(numbers)


@shared_task
def break_down(*_):
    raise ValueError("bad value")
