"""The contents of the result tables, and what Celery's result classes return for them."""

import json
import traceback

from celery import current_app
from celery.result import AsyncResult, GroupResult
from django.core.management.base import BaseCommand
from django_celery_results.backends import DatabaseBackend
from django_celery_results.models import ChordCounter, TaskResult
from django_celery_results.models import GroupResult as GroupRow

from .rows import column, columns


def attempt(read):
    """What `read` returns or raises, as text. A stored result can be a KeyboardInterrupt."""
    try:
        return repr(read())
    except BaseException as error:
        return "".join(traceback.format_exception_only(type(error), error))


def decoded(row):
    """The serialized columns as values, because their bytes contain process ids and differ by run.
    """
    backend = DatabaseBackend(app=current_app)
    return {
        name: attempt(lambda name=name: backend.decode_content(row, getattr(row, name)))
        for name in ("result", "meta", "task_args", "task_kwargs")
        if hasattr(row, name)
    }


def task_view(task_id):
    result = AsyncResult(task_id)
    views = {
        name: attempt(lambda name=name: getattr(result, name))
        for name in (
            "state",
            "result",
            "info",
            "traceback",
            "name",
            "args",
            "kwargs",
            "worker",
            "retries",
            "queue",
            "children",
            "parent",
        )
    }
    # Waiting for a result that does not exist would take until the timeout.
    views["got"] = attempt(lambda: result.ready() and result.get(timeout=1))
    views["date_done"] = attempt(lambda: column(result.date_done))
    return views


def group_view(group_id):
    def members():
        restored = GroupResult.restore(group_id)
        return restored.id, [(member.as_tuple(), member.state) for member in restored]

    return {"members": attempt(members)}


class Command(BaseCommand):
    help = "Print the rows of all three tables, and what Celery's result classes read from them."

    def handle(self, *args, **options):
        tasks = {
            task.task_id: {
                "row": columns(task),
                "decoded": decoded(task),
                "view": task_view(task.task_id),
            }
            for task in TaskResult.objects.order_by("id")
        }
        groups = {
            group.group_id: {
                "row": columns(group),
                "decoded": decoded(group),
                "view": group_view(group.group_id),
            }
            for group in GroupRow.objects.order_by("id")
        }
        chords = [columns(chord) for chord in ChordCounter.objects.order_by("id")]
        self.stdout.write(json.dumps({"tasks": tasks, "groups": groups, "chords": chords}))
