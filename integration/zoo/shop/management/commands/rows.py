"""Every stored result as the ORM and as Celery's `AsyncResult` return it."""

import datetime
import json

from celery.result import AsyncResult
from django.core.management.base import BaseCommand
from django_celery_results.models import TaskResult


def column(value):
    if isinstance(value, datetime.datetime):
        return value.isoformat(timespec="microseconds")
    return value


def columns(instance):
    fields = instance._meta.concrete_fields
    return {field.name: column(field.value_from_object(instance)) for field in fields}


def async_result(task_id):
    """What a caller gets; the error if the row cannot be read, so that tests can compare it."""
    try:
        result = AsyncResult(task_id)
        return {
            "state": result.state,
            "result": repr(result.result),
            "traceback": result.traceback,
            "children": [child.id for child in result.children or []],
        }
    except Exception as error:
        return {"error": repr(error)}


def rows():
    return {
        task.task_id: {"row": columns(task), "async_result": async_result(task.task_id)}
        for task in TaskResult.objects.order_by("id")
    }


class Command(BaseCommand):
    help = "Print all task results as one JSON object by task id."

    def handle(self, *args, **options):
        self.stdout.write(json.dumps(rows()))
