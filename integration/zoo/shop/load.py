"""Thousands of tasks; the number of each determines how it ends."""

import random

from celery import current_app, shared_task
from celery.utils import uuid

SEED = 20240610


def course(number):
    """How many attempts of a task fail first, and how it ends."""
    chance = random.Random(SEED + number)
    retries = chance.choice((0, 0, 0, 0, 1, 1, 2))
    return retries, chance.choices(("succeed", "fail"), (5, 1))[0]


@shared_task(bind=True, max_retries=3)
def work(self, number):
    retries, end = course(number)
    if self.request.retries < retries:
        raise self.retry(exc=ConnectionError(number), countdown=0)
    if end == "fail":
        raise ValueError(number)
    return {"number": number, "text": "x" * (number % 300)}


@shared_task(bind=True, ignore_result=True)
def work_unwanted(self, number):
    if course(number)[1] == "fail":
        raise ValueError(number)


def publish(tasks):
    """Publishes tasks, and returns their ids. The result of every tenth is ignored."""
    # Without confirms RabbitMQ can drop what a process published just before it ended.
    current_app.conf.broker_transport_options = {"confirm_publish": True}
    ids = []
    for number in range(tasks):
        task = work_unwanted if number % 10 == 9 else work
        ids.append(task.apply_async((number,), task_id=uuid()).id)
    return ids
