"""The Django app, which has the tables for chords and `python manage.py celeriac`."""

from __future__ import annotations

from typing import Any

from celery.signals import worker_init
from django.apps import AppConfig

from .options import configured_url


class CeleriacConfig(AppConfig):
    """`"celeriac"` in `INSTALLED_APPS`."""

    name = "celeriac"
    verbose_name = "Celeriac"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        worker_init.connect(open_backend)


def open_backend(sender: Any, **_: Any) -> None:
    """Makes the result backend before a worker decides how it runs `celery.chord_unlock`."""
    if configured_url(sender.app):
        _ = sender.app.backend
