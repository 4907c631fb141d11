"""The tasks of the demo: a shop's background work."""

import os
import time

from celery import shared_task


class OutOfStock(Exception):
    pass


@shared_task
def add(left, right):
    return left + right


@shared_task
def total(numbers):
    return sum(numbers)


@shared_task
def price(article, quantity=1):
    return {"article": article, "quantity": quantity, "total": f"{quantity * 9.99:.2f}"}


@shared_task
def reserve(article):
    raise OutOfStock(article, 0)


@shared_task(bind=True, max_retries=3)
def charge_card(self, card):
    """The bank answers at the third attempt."""
    if self.request.retries < 2:
        raise self.retry(exc=ConnectionError("the bank is busy"), countdown=0.2)
    return f"charged {card}"


@shared_task(bind=True)
def import_catalogue(self, seconds):
    """Reports its progress, and then waits so that you can see it."""
    self.update_state(state="PROGRESS", meta={"done": 50, "of": 100})
    time.sleep(seconds)
    return {"done": 100, "of": 100}


@shared_task(bind=True)
def own_row(self):
    """Reads its own row, as some projects do to add to it."""
    from django_celery_results.models import TaskResult

    row = TaskResult.objects.filter(task_id=self.request.id).first()
    return row.status if row else None


@shared_task(bind=True)
def record(self, value, path):
    """Appends its id to a file, so that every run can be counted."""
    with open(path, "a") as file:
        file.write(f"{self.request.id}\n")
    return value


@shared_task
def wait_for_file(path, value=None):
    """Ends when the file exists."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return value


@shared_task(bind=True)
def add_member(self, value):
    """Adds a task to the chord that it belongs to."""
    self.add_to_chord(add.s(value, 1))
    return value
