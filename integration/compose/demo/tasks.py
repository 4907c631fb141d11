"""The background tasks of a shop, one for each way in which a task can end."""

import time

from celery import shared_task


class OutOfStock(Exception):
    pass


@shared_task
def price(article, quantity=1):
    return {"article": article, "quantity": quantity, "total": f"{quantity * 9.99:.2f}"}


@shared_task
def reserve(article):
    raise OutOfStock(article)


@shared_task(bind=True, max_retries=3)
def charge_card(self, card):
    """The bank answers at the third attempt."""
    if self.request.retries < 2:
        raise self.retry(exc=ConnectionError("the bank is busy"), countdown=3)
    return f"charged {card}"


@shared_task(bind=True)
def import_catalogue(self, pages):
    """Reports its progress."""
    for page in range(pages):
        self.update_state(state="PROGRESS", meta={"done": page, "of": pages})
        time.sleep(1)
    return {"done": pages, "of": pages}


@shared_task
def add(left, right):
    return left + right


@shared_task
def total(numbers):
    return sum(numbers)
