"""The Celery application, with the three lines that make `rpc://` workers send results to Celeriac.
"""

import os

from celery import Celery
from celery.signals import before_task_publish

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
if "SECURITY_KEY" in os.environ:
    app.setup_security()
app.autodiscover_tasks()
app.autodiscover_tasks(related_name="zoo")
app.autodiscover_tasks(related_name="watched")
app.autodiscover_tasks(related_name="load")


@before_task_publish.connect
def send_results_to_celeriac(properties, **_):
    properties["reply_to"] = "celeriac.results"
