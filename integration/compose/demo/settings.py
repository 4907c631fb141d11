"""A small Django project. Broker, database and result backend are set by the environment."""

import os

import pymysql

# A MySQL driver that needs no compiler.
pymysql.install_as_MySQLdb()

# Only for a demo on your own machine.
SECRET_KEY = "only for the demo"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_results",
    "celeriac",
    "demo",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "demo.urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"

# These variables are DATABASE_ENGINE, DATABASE_NAME and so on.
DATABASES = {
    "default": {
        name: os.environ.get(f"DATABASE_{name}", "")
        for name in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST")
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_RESULT_BACKEND = os.environ.get("RESULT_BACKEND", "celeriac://")
CELERY_RESULT_EXTENDED = True
CELERY_TASK_TRACK_STARTED = True
