import os

from celery import Celery
from celery.signals import before_task_publish

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo.settings")

app = Celery("demo")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@before_task_publish.connect
def send_results_to_celeriac(properties=None, **kwargs):
    """Used only by workers with `rpc://`."""
    properties["reply_to"] = "celeriac.results"
