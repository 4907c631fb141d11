"""The options in a `celeriac://` URL, which say where results go."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlsplit

from celery.exceptions import ImproperlyConfigured
from kombu.utils.url import maybe_sanitize_url

if TYPE_CHECKING:
    from celery import Celery

SCHEME = "celeriac"


@dataclass(frozen=True)
class Options:
    """The names of queues and exchanges. If they are not the defaults, the daemon must be given
    the same names.

    `broker` is the broker's URL, or None for the one that the Celery app has for its tasks.
    `started` says how STARTED is stored: by a `message`, or `direct`, in the worker's own
    connection to the database.
    """

    exchange: str = "celeriac"
    queue: str = "celeriac.results"
    dead_queue: str = "celeriac.dead"
    broker: str | None = None
    started: str = "message"

    @property
    def chords_key(self) -> str:
        """The routing key of messages about chords. Only a daemon that has the tables for chords
        binds its queue with it."""
        return f"{self.queue}.chords"

    @classmethod
    def parse(cls, url: str | None) -> Options:
        """Parses a URL such as `celeriac://?queue=shop.results`. Raises an `ImproperlyConfigured`
        that does not repeat the URL, which may contain a password."""
        parts = urlsplit(url or f"{SCHEME}://")
        if parts.netloc or parts.path.strip("/") or parts.fragment:
            raise ImproperlyConfigured(
                "the result backend's URL names a host or a path, which celeriac:// has not: "
                "write celeriac://?broker=amqp%3A%2F%2F… to name another broker than the app's"
            )
        known = [field.name for field in fields(cls)]
        given: dict[str, str] = {}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name not in known:
                raise ImproperlyConfigured(
                    f"celeriac:// has no option {name!r}: write one of {', '.join(known)}"
                )
            if name in given:
                raise ImproperlyConfigured(f"celeriac:// has the option {name!r} twice")
            given[name] = value
        for name, value in given.items():
            if not value:
                raise ImproperlyConfigured(f"the option {name!r} of celeriac:// is empty")
            # RabbitMQ accepts names of up to 255 bytes and reserves those that begin with `amq.`.
            if name not in ("broker", "started") and (len(value.encode()) > 255 or value.startswith("amq.")):
                raise ImproperlyConfigured(
                    f"the option {name!r} of celeriac:// is no name for RabbitMQ: write at most "
                    "255 bytes that do not begin with `amq.`"
                )
        if given.get("started", "message") not in ("message", "direct"):
            raise ImproperlyConfigured(
                "the option 'started' of celeriac:// is unknown: write message or direct"
            )
        brokers = given.get("broker", "amqp://").split(";")
        if not all(re.match(r"\w+://", broker) for broker in brokers):
            raise ImproperlyConfigured(
                "the option 'broker' of celeriac:// is no URL with a scheme: write "
                "broker=amqp%3A%2F%2F…"
            )
        options = cls(**given)
        if options.queue == options.dead_queue:
            raise ImproperlyConfigured("celeriac:// has the same name as queue and dead_queue")
        return options

    def as_uri(self, *, include_password: bool = False) -> str:
        """The URL without the defaults, and with `**` instead of passwords unless they are
        requested."""
        query = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name == "broker" and not include_password:
                value = ";".join(maybe_sanitize_url(part) for part in value.split(";"))
            query.append(f"{field.name}={quote(value, safe='*')}")
        return f"{SCHEME}://" + (f"?{'&'.join(query)}" if query else "")


def configured_url(app: Celery, default: object = None) -> str | None:
    """The URL of the app's result backend if it is `celeriac://`, or otherwise None."""
    backend = app.conf.result_backend or default
    url = backend.rpartition("+")[2] if isinstance(backend, str) else ""
    return url if url.startswith(f"{SCHEME}://") else None
