"""The Django app, which has the tables for chords and `python manage.py celeriac`."""

from __future__ import annotations

from django.apps import AppConfig


class CeleriacConfig(AppConfig):
    """`"celeriac"` in `INSTALLED_APPS`."""

    name = "celeriac"
    verbose_name = "Celeriac"
    default_auto_field = "django.db.models.BigAutoField"
