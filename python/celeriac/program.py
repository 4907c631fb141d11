"""Finds and runs the daemon's program, with settings taken from Django and Celery."""

from __future__ import annotations

import os
import shutil
import ssl
import sys
import sysconfig
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from celery import Celery
    from django.db.backends.base.base import BaseDatabaseWrapper

#: The folders of PostgreSQL's socket: those of Debian, of other systems and of PostgreSQL itself.
POSTGRESQL_SOCKETS = ("/var/run/postgresql", "/run/postgresql", "/tmp")

#: The sockets of MySQL and MariaDB on Debian and on other systems.
MYSQL_SOCKETS = ("/var/run/mysqld/mysqld.sock", "/run/mysqld/mysqld.sock", "/tmp/mysql.sock")

#: The daemon's variables for the names in the result backend's URL.
NAMES = {
    "CELERIAC_EXCHANGE": "exchange",
    "CELERIAC_RESULTS_QUEUE": "queue",
    "CELERIAC_DEAD_QUEUE": "dead_queue",
}

#: The serializers that the daemon knows by name.
SERIALIZERS = ("json", "msgpack", "yaml", "pickle", "auth")


class SettingsError(Exception):
    """The program is missing, or a setting has no equivalent. The text says how to fix it."""


def find() -> str:
    """The path of the program: from `CELERIAC_BIN`, next to this Python, or in `PATH`."""
    if named := os.environ.get("CELERIAC_BIN"):
        if not os.access(named, os.X_OK):
            raise SettingsError(f"CELERIAC_BIN names {named}, which is no program")
        return named
    name = "celeriac.exe" if os.name == "nt" else "celeriac"
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    for folder in folders:
        if os.access(folder / name, os.X_OK):
            return str(folder / name)
    if found := shutil.which(name):
        return found
    raise SettingsError(
        f"the program `{name}` is neither beside {sys.executable} nor in PATH: install it with "
        "`pip install celeriac`, or name it in CELERIAC_BIN"
    )


def execute(arguments: list[str], env: Mapping[str, str]) -> None:
    """Replaces this process with the program, so that signals reach it; does not return."""
    program = find()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, [program, *arguments], dict(env))


def environment(app: Celery, alias: str | None = None) -> dict[str, str]:
    """The environment of this process, with the settings for the daemon added.

    The broker, the database and `result_expires` are passed in variables that a configuration file
    overrides. The database is that of `alias`, or the one that Django's router writes results to.
    """
    from django.conf import settings
    from django.db import connections

    from .options import Options, configured_url

    # An empty variable is treated as not set, as the daemon does.
    env = {name: value for name, value in os.environ.items() if value}
    made: dict[str, str] = {}
    # If importing Django's settings did not create a Celery app, the settings are read directly.
    url = configured_url(app, getattr(settings, "CELERY_RESULT_BACKEND", None))
    options, default = Options.parse(url), Options()
    for variable, field in NAMES.items():
        if getattr(options, field) != getattr(default, field):
            made[variable] = getattr(options, field)
    if length := getattr(settings, "DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH", None):
        made["CELERIAC_TASK_ID_LENGTH"] = str(length)
    if not {"CELERIAC_BROKER", "CELERIAC_BROKER_FILE"} & env.keys():
        env["CELERY_BROKER_URL"] = broker_url(app, options.broker)
    if not {"CELERIAC_DATABASE", "CELERIAC_DATABASE_FILE"} & env.keys():
        connection = connections[alias or _results_alias()]
        env["DATABASE_URL"] = database_url(connection)
        if connection.vendor != "postgresql" and connection.timezone_name != "UTC":
            # PostgreSQL's columns store the time zone.
            made["CELERIAC_TIME_ZONE"] = connection.timezone_name
        passfile = connection.settings_dict["OPTIONS"].get("passfile")
        if connection.vendor == "postgresql" and passfile:
            made["PGPASSFILE"] = os.fspath(passfile)
    if "CELERIAC_ACCEPT_CONTENT" not in env and (accepted := accept_content(app)):
        made["CELERIAC_ACCEPT_CONTENT"] = accepted
    if "CELERIAC_RESULT_EXPIRES" not in env and (expires := result_expires(app)):
        env["CELERY_RESULT_EXPIRES"] = expires
    made.update(security(app))
    return {**made, **env}


def _results_alias() -> str:
    from django.apps import apps
    from django.db import DEFAULT_DB_ALIAS, router

    if not apps.is_installed("django_celery_results"):
        return DEFAULT_DB_ALIAS
    return router.db_for_write(apps.get_model("django_celery_results", "TaskResult"))


# Accepted serializers and signatures --------------------------------------------------------------


def _configured(app: Celery, name: str) -> Any:
    """A Celery setting, from the app or from Django's settings. None if it is not set."""
    from celery.app.defaults import DEFAULTS
    from django.conf import settings

    default = DEFAULTS[name]

    def is_default(value: Any) -> bool:
        # A list that the user set counts as set, even if it is equal to the default. In Celery 5.2
        # one of the defaults is a list too, of which the app has a copy.
        return value is default or (isinstance(default, (str, list)) and value == default)

    value = app.conf[name]
    if is_default(value):
        value = getattr(settings, f"CELERY_{name.upper()}", default)
    return None if is_default(value) else value


def accept_content(app: Celery) -> str | None:
    """The serializers that readers accept, and the one that workers use, because
    django-celery-results always stores that one.

    None if nothing is set.
    """
    names = _configured(app, "result_accept_content") or _configured(app, "accept_content")
    serializer = _configured(app, "result_serializer")
    if not names and not serializer:
        return None
    wanted = {*(names or ["json"]), serializer or "json"}
    return ",".join(sorted(_serializer(name) for name in wanted))


def _serializer(name: str) -> str:
    from kombu.serialization import registry

    if name in SERIALIZERS or "/" in name:
        return name
    if name not in registry.name_to_type:
        raise SettingsError(
            f"the serializer {name!r} is registered nowhere: set CELERIAC_ACCEPT_CONTENT"
        )
    return registry.name_to_type[name]


def security(app: Celery) -> dict[str, str]:
    """The settings with which the daemon verifies the signatures of the serializer `auth`."""
    names = ["security_cert_store", "security_digest"]
    found = {f"CELERIAC_{name.upper()}": _configured(app, name) for name in names}
    return {variable: os.fspath(value) for variable, value in found.items() if value}


# What expires -----------------------------------------------------------------------------------


def result_expires(app: Celery) -> str | None:
    """Celery's `result_expires` in seconds, or `never` if it is 0 or None. None if it is not set.
    """
    from celery.app.defaults import DEFAULTS
    from django.conf import settings

    default = DEFAULTS["result_expires"]
    value = app.conf.result_expires
    if value == default:
        # Importing Django's settings did not create a Celery app.
        old_name = getattr(settings, "CELERY_TASK_RESULT_EXPIRES", default)
        value = getattr(settings, "CELERY_RESULT_EXPIRES", old_name)
    if value == default:
        # The program has the same default.
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        seconds = float(value or 0)
    except (TypeError, ValueError):
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise SettingsError(
            f"result_expires is {value!r}, which is no number of seconds: correct it, or set "
            "CELERIAC_RESULT_EXPIRES"
        )
    return f"{seconds:f}" if seconds else "never"


# The broker -----------------------------------------------------------------------------------


def broker_url(app: Celery, url: str | None = None) -> str:
    """The URLs of the brokers that the app publishes to, or those in `url`."""
    from django.conf import settings

    urls = url or app.conf.broker_write_url
    if not urls:
        # Importing Django's settings did not create a Celery app.
        for name in ("CELERY_BROKER_URL", "BROKER_URL"):
            urls = urls or getattr(settings, name, None)
    if not urls:
        raise SettingsError(
            "no broker is configured in Django's settings or in a Celery app that the project "
            "imports: set CELERIAC_BROKER"
        )
    parts = urls.split(";") if isinstance(urls, str) else urls
    return ";".join(_broker_url(app, part) for part in parts if part)


def _broker_url(app: Celery, url: str) -> str:
    from kombu.transport.pyamqp import SSLTransport

    # Without a scheme it is a host, and the setting `broker_transport` names the transport.
    scheme = url.partition("://")[0] if "://" in url else app.conf.broker_transport or "amqp"
    if scheme not in ("amqp", "amqps", "pyamqp", "librabbitmq"):
        raise SettingsError(
            f"the broker is {scheme}://, and results come by way of RabbitMQ: name one in the "
            "URL, CELERY_RESULT_BACKEND = 'celeriac://?broker=amqp%3A%2F%2F…', or in "
            "CELERIAC_BROKER"
        )
    connection = app.connection_for_write(url)
    password = connection.password
    password = password() if callable(password) else password
    has_tls = bool(connection.ssl) or scheme == "amqps"
    port = connection.port or (SSLTransport.default_ssl_port if has_tls else 5672)
    query = {"heartbeat": int(connection.heartbeat)} if connection.heartbeat else {}
    if isinstance(connection.ssl, dict):
        query.update(_broker_tls(connection.ssl))
    return _url(
        "amqps" if has_tls else "amqp",
        connection.userid or "guest",
        password or "guest",
        connection.hostname or "localhost",
        port,
        connection.virtual_host or "/",
        query,
    )


def _broker_tls(options: Mapping[str, Any]) -> dict[str, str]:
    """Converts py-amqp's TLS options to parameters of the daemon's URL."""
    query = {}
    for name in ("ca_certs", "certfile", "keyfile"):
        if value := options.get(name) or options.get(f"ssl_{name}"):
            query[f"ssl_{name}"] = os.fspath(value)
    if options.get("cert_reqs", options.get("ssl_cert_reqs")) == ssl.CERT_NONE:
        query["ssl_cert_reqs"] = "none"
    return query


# The database ---------------------------------------------------------------------------------


def database_url(connection: BaseDatabaseWrapper) -> str:
    """The URL of one of Django's databases, by its vendor and not by the name of its engine."""
    makers = {"postgresql": _postgresql, "mysql": _mysql, "sqlite": _sqlite}
    if connection.vendor not in makers:
        raise SettingsError(
            f"the database {connection.alias!r} is {connection.vendor}, which Celeriac does not "
            "write to: name one on PostgreSQL, MySQL, MariaDB or SQLite with --django-database"
        )
    return makers[connection.vendor](connection.settings_dict)


def _postgresql(settings: Mapping[str, Any]) -> str:
    """The database that libpq would connect to. Without a host, it uses `PGHOST` or a local
    socket."""
    options = settings["OPTIONS"]
    for name in ("service", "hostaddr", "target_session_attrs"):
        if options.get(name, "any") != "any":
            raise _unsupported(f"the OPTIONS `{name}`")
    host = settings["HOST"] or options.get("host") or os.environ.get("PGHOST")
    port = settings["PORT"] or os.environ.get("PGPORT") or ""
    if host and "," in host:
        raise _unsupported("several hosts of PostgreSQL")
    if not host:
        socket = f".s.PGSQL.{port or 5432}"
        folders = [path for path in POSTGRESQL_SOCKETS if (Path(path) / socket).exists()]
        host = folders[0] if folders else "localhost"
    names = ("sslmode", "sslrootcert", "sslcert", "sslkey", "options")
    query = {name: os.fspath(options[name]) for name in names if options.get(name)}
    if role := options.get("assume_role"):
        query["options"] = f"{query.get('options', '')} -c role={role}".strip()
    user, password = settings["USER"], settings["PASSWORD"]
    return _url("postgres", user, password, host, port, settings["NAME"] or "postgres", query)


def _mysql(settings: Mapping[str, Any]) -> str:
    """Uses the options of mysqlclient and PyMySQL, which Django passes on."""
    options = settings["OPTIONS"]
    if "read_default_file" in options or "read_default_group" in options:
        raise _unsupported("the OPTIONS `read_default_file`")
    host, query = settings["HOST"] or "localhost", {}
    socket = host if host.startswith("/") else options.get("unix_socket")
    if not socket and host == "localhost" and not settings["PORT"]:
        # The client library of MySQL does the same.
        socket = next((path for path in MYSQL_SOCKETS if Path(path).exists()), None)
    if socket:
        host, query["socket"] = "localhost", os.fspath(socket)
    tls = options.get("ssl") or {}
    if not isinstance(tls, Mapping):
        tls, query["ssl-mode"] = {}, "REQUIRED"
    for name in ("ca", "cert", "key"):
        if value := tls.get(name) or options.get(f"ssl_{name}"):
            query[f"ssl-{name}"] = os.fspath(value)
    checks_host = tls.get("check_hostname") or options.get("ssl_verify_identity")
    if mode := options.get("ssl_mode"):
        query["ssl-mode"] = mode
    elif "ssl-ca" in query:
        query["ssl-mode"] = "VERIFY_IDENTITY" if checks_host else "VERIFY_CA"
    elif tls or "ssl-cert" in query:
        query["ssl-mode"] = "REQUIRED"
    user = settings["USER"] or options.get("user", "")
    password = settings["PASSWORD"] or options.get("password") or options.get("passwd", "")
    name = settings["NAME"] or options.get("database") or options.get("db", "")
    return _url("mysql", user, password, host, settings["PORT"], name, query)


def _sqlite(settings: Mapping[str, Any]) -> str:
    name = os.fspath(settings["NAME"])
    if name.startswith("file:") or ":memory:" in name:
        raise _unsupported("a URI or a database in memory as NAME of SQLite")
    return f"sqlite:///{quote(os.path.abspath(name))}"


def _unsupported(what: str) -> SettingsError:
    return SettingsError(f"Celeriac cannot take {what} from Django: set CELERIAC_DATABASE")


def _url(
    scheme: str,
    user: str,
    password: str,
    host: str,
    port: int | str,
    name: str,
    query: Mapping[str, Any],
) -> str:
    """Builds a URL. Every part is encoded, so that a host can be the folder of a Unix socket."""
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    address = f"[{host}]" if ":" in host else quote(host, safe="")
    address += f":{port}" if port else ""
    parameters = f"?{urlencode(query, quote_via=quote)}" if query else ""
    return f"{scheme}://{login}{'@' if login else ''}{address}/{quote(name, safe='')}{parameters}"
