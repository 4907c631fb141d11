"""The task that the demo sends thousands of times."""

import time

from celery import shared_task


@shared_task
def price(article):
    """Returns the time at which it ended, in seconds since the epoch."""
    return {"article": article, "ended": time.time()}
