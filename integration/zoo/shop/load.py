"""Tasks by the thousand that end in many ways, each as its number says."""

import random

from celery import current_app, shared_task
from celery.utils import uuid

SEED = 20240610


def course(number):
    """How often a task is tried in vain, and how it ends."""
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
    """Every tenth result is wanted by nobody. The ids are those whose states are final one day."""
    # RabbitMQ can drop what a process sent in the moment before it ended, unless it is confirmed.
    current_app.conf.broker_transport_options = {"confirm_publish": True}
    ids = []
    for number in range(tasks):
        task = work_unwanted if number % 10 == 9 else work
        ids.append(task.apply_async((number,), task_id=uuid()).id)
    return ids
