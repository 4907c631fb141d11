"""Sends Celery task results through RabbitMQ to the tables of django-celery-results.

Workers set `result_backend = "celeriac://"` (`celeriac.backend`); the daemon `celeriac`, which
this package contains, writes the rows. `"celeriac"` in Django's `INSTALLED_APPS` adds
`python manage.py celeriac run`, which starts the daemon with the project's own settings.
"""
