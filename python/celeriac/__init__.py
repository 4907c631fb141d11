"""Celery task results by way of RabbitMQ into the tables of django-celery-results.

Workers set `result_backend = "celeriac://"` (`celeriac.backend`); the daemon, a program of the same
name that comes with this package, writes the rows. `"celeriac"` in Django's `INSTALLED_APPS` adds
`python manage.py celeriac run`, which starts the daemon with the project's own settings.
"""
