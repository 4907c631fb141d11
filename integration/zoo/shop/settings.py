"""An ordinary Django project; the settings that the tests vary come from the environment."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

BASE_DIR = Path(__file__).resolve().parent.parent


def flag(name, default):
    return os.environ.get(name, default).lower() in ("1", "true", "yes", "on")


def database(url):
    """Django's settings for a database URL."""
    parts = urlsplit(url)
    name = unquote(parts.path[1:])
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": name,
            "OPTIONS": {"timeout": 20},
        }
    server = {
        "NAME": name,
        "HOST": parts.hostname,
        "PORT": parts.port or "",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
    }
    if parts.scheme in ("postgres", "postgresql"):
        return {"ENGINE": "django.db.backends.postgresql", **server}
    if parts.scheme == "mysql":
        # A MySQL driver that needs no compiler and no MySQL libraries.
        import pymysql

        pymysql.install_as_MySQLdb()
        return {
            "ENGINE": "django.db.backends.mysql",
            "OPTIONS": {"charset": "utf8mb4"},
            **server,
        }
    raise ValueError(f"no database is known for `{parts.scheme}://`: use sqlite, postgres or mysql")


SECRET_KEY = "only for the demo and the tests"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django_celery_results",
    "celeriac",
    "shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
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

DATABASES = {
    "default": database(os.environ.get("DATABASE_URL", f"sqlite:///{BASE_DIR / 'db.sqlite3'}"))
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

USE_TZ = flag("USE_TZ", "on")
TIME_ZONE = os.environ.get("TIME_ZONE", "UTC")

if length := os.environ.get("DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH"):
    DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH = int(length)

# Where Django reads results. A worker's `--result-backend` takes precedence over it.
CELERY_RESULT_BACKEND = os.environ.get("RESULT_BACKEND", "django-db")
CELERY_RESULT_EXTENDED = flag("RESULT_EXTENDED", "on")
CELERY_RESULT_SERIALIZER = os.environ.get("RESULT_SERIALIZER", "json")
CELERY_RESULT_CHORD_RETRY_INTERVAL = float(os.environ.get("RESULT_CHORD_RETRY_INTERVAL", "1"))
CELERY_ACCEPT_CONTENT = os.environ.get("ACCEPT_CONTENT", "json").split(",")
CELERY_TASK_TRACK_STARTED = flag("TASK_TRACK_STARTED", "on")
CELERY_TASK_SEND_SENT_EVENT = flag("TASK_SEND_SENT_EVENT", "off")
CELERY_EVENT_SERIALIZER = os.environ.get("EVENT_SERIALIZER", "json")
CELERY_TASK_SERIALIZER = os.environ.get("TASK_SERIALIZER", "json")
# For signed messages; see `app.setup_security`.
CELERY_SECURITY_KEY = os.environ.get("SECURITY_KEY")
CELERY_SECURITY_CERTIFICATE = CELERY_SECURITY_CERT_STORE = os.environ.get("SECURITY_CERTIFICATE")
CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "amqp://guest:guest@localhost:5672//")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = TIME_ZONE
