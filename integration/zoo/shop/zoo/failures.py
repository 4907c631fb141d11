"""Exceptions: what is stored of them, also of those that cannot be stored as they are."""

import builtins
import errno
import json
import os
import signal
import threading

import celery
from celery import shared_task
from celery.exceptions import (
    ImproperlyConfigured,
    InvalidTaskError,
    MaxRetriesExceededError,
    SoftTimeLimitExceeded,
    TaskRevokedError,
)
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.utils.translation import gettext_lazy

from .cases import ENDS, SEEN, simple


class Shop:
    class Closed(Exception):
        """Its qualified name contains a dot."""


class Strict(Exception):
    """Cannot be unpickled, because its constructor requires a keyword argument."""

    def __init__(self, *, code):
        super().__init__("strict", code)


class Formatted(Exception):
    """Cannot be unpickled, because its constructor turns two arguments into one."""

    def __init__(self, article, missing):
        super().__init__(f"{missing} of {article} are missing")
        self.article = article


class Rich(Exception):
    """Has more attributes than its arguments."""

    def __init__(self, code, **details):
        super().__init__(code)
        self.details = details


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("says nothing")


class Shy(Exception):
    def __repr__(self):
        raise RuntimeError("shows nothing")


class Told(Exception):
    def __str__(self):
        return "told otherwise"


class Reduced(Exception):
    def __reduce__(self):
        return (Reduced, ("reduced",))


class Custom(BaseException):
    """Not an `Exception`."""


class Refused(ValueError):
    """Its parent is not `Exception`."""


Renamed = type("Renamed", (Exception,), {"__module__": "a.module.that.is.not.there"})


def raise_(error):
    raise error


def raise_chained():
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("because of the key") from error


def raise_in_handler():
    try:
        {}["missing"]
    except KeyError:
        raise RuntimeError("while handling the key")


def raise_suppressed():
    try:
        {}["missing"]
    except KeyError:
        raise RuntimeError("of no cause") from None


def raise_long_chain():
    error = ValueError("number 0")
    for number in range(1, 30):
        try:
            raise RuntimeError(f"number {number}") from error
        except RuntimeError as next_error:
            error = next_error
    raise error


def raise_local():
    class Local(Exception):
        pass

    raise Local("nobody can import me")


def raise_noted():
    error = ValueError("with notes")
    error.add_note("first note")
    error.add_note("second 🥬")
    raise error


def raise_group():
    raise ExceptionGroup(  # noqa: F821
        "a group",
        [ValueError("one"), ExceptionGroup("inner", [TypeError("two")])],  # noqa: F821
    )


def recurse():
    return recurse()


def raise_with_self_in_args():
    error = ValueError("myself")
    error.args = ("myself", error)
    raise error


def raise_from_made_up_code():
    exec(compile("raise ValueError('from nowhere')", "crème <nowhere>", "exec"), {})


STOCK_FAILURES = {
    "value_error": lambda: raise_(ValueError("bad value")),
    "without_args": lambda: raise_(ValueError()),
    "many_args": lambda: raise_(ValueError("code", 7, None, [1, {"a": 2.5}])),
    "unicode": lambda: raise_(ValueError('crème 🥬 "quoted"\n second line')),
    "surrogate_in_args": lambda: raise_(KeyError("k\ud800")),
    "object_in_args": lambda: raise_(ValueError({1, 2}, 3 + 4j)),
    "nested_class": lambda: raise_(Shop.Closed("until nine")),
    "keyword_only": lambda: raise_(Strict(code=7)),
    "local_class": raise_local,
    "chained": raise_chained,
    "long_message": lambda: raise_(ValueError("long " * 4000)),
    "zero_division": lambda: 1 / 0,
}

MORE_FAILURES = {
    # How they were raised
    "in_handler": raise_in_handler,
    "suppressed": raise_suppressed,
    "long_chain": raise_long_chain,
    "recursion": recurse,
    "made_up_code": raise_from_made_up_code,
    "assertion": lambda: raise_(AssertionError(("a", "tuple"))),
    "stop_iteration": lambda: next(iter(())),
    # What they contain
    "empty_text": lambda: raise_(ValueError("")),
    "none_in_args": lambda: raise_(ValueError(None)),
    "bytes_in_args": lambda: raise_(ValueError(b"\xff\x00", b"plain")),
    "exception_in_args": lambda: raise_(ValueError(KeyError("inner"), [TypeError("deeper")])),
    "self_in_args": raise_with_self_in_args,
    "dict_in_args": lambda: raise_(ValueError({"exc_type": "KeyError", 1: (2, 3)})),
    "lambda_in_args": lambda: raise_(ValueError(raise_local, Shop)),
    "lock_in_args": lambda: raise_(ValueError(threading.Lock(), "locked")),
    "lazy_in_args": lambda: raise_(ValueError(gettext_lazy("late"))),
    "many_lines": lambda: raise_(ValueError("\n".join(f"line {n}" for n in range(200)))),
    "large": lambda: raise_(ValueError("0123456789abcdef" * 20000)),
    "attributes": lambda: raise_(Rich(7, reason="rich")),
    "formatted": lambda: raise_(Formatted("leek", 3)),
    "without_text": lambda: raise_(Mute("quiet")),
    "without_repr": lambda: raise_(Shy("hidden")),
    "other_text": lambda: raise_(Told("one thing")),
    "reduced": lambda: raise_(Reduced("whole", "lot")),
    # Where they are from
    "subclass": lambda: raise_(Refused("refused")),
    "module_missing": lambda: raise_(Renamed("renamed")),
    "os_error": lambda: raise_(FileNotFoundError(errno.ENOENT, "no such file", "/srv/none")),
    "key_error": lambda: {}["missing"],
    "unicode_error": lambda: b"\xff".decode(),
    "json_error": lambda: json.loads("{"),
    "attribute_error": lambda: raise_local.missing,
    "import_error": lambda: __import__("nothing.of.the.kind"),
    "timeout": lambda: raise_(TimeoutError("late")),
    "validation": lambda: raise_(ValidationError({"name": ["too short"]}, code="invalid")),
    "does_not_exist": lambda: raise_(ObjectDoesNotExist("no such row")),
    "celery.configured": lambda: raise_(ImproperlyConfigured("by hand")),
    "celery.invalid": lambda: raise_(InvalidTaskError("by hand")),
    "celery.revoked": lambda: raise_(TaskRevokedError("by hand")),
    "celery.retries": lambda: raise_(MaxRetriesExceededError("by hand", 1)),
    "celery.soft_limit": lambda: raise_(SoftTimeLimitExceeded("by hand")),
}
if hasattr(builtins, "ExceptionGroup"):
    MORE_FAILURES["group"] = raise_group
    MORE_FAILURES["noted"] = raise_noted

#: Not storable in PostgreSQL or not valid UTF-8, so that django-celery-results fails.
UNSTORABLE_FAILURES = {
    "nul": lambda: raise_(ValueError("a\0b")),
    "surrogate": lambda: raise_(ValueError("half \ud800 of it")),
}

#: These end the process of the pool, depending on the version of Celery.
DEADLY_FAILURES = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
    "keyboard_interrupt": lambda: raise_(KeyboardInterrupt("at the keyboard")),
    "generator_exit": lambda: raise_(GeneratorExit("closed")),
    "base_exception": lambda: raise_(Custom("not an exception")),
}
# From 5.4 to 5.6 such a task never ends, and the worker waits for it when it shuts down.
if not (5, 4) <= celery.VERSION < (5, 7):
    DEADLY_FAILURES["system_exit"] = lambda: raise_(SystemExit(3))

FAILURES = STOCK_FAILURES | MORE_FAILURES | UNSTORABLE_FAILURES | DEADLY_FAILURES


@shared_task
def fail(name):
    FAILURES[name]()


@shared_task(throws=(ValueError,))
def fail_as_expected():
    raise ValueError("expected")


@shared_task(bind=True, acks_late=True, reject_on_worker_lost=True)
def die_once(self):
    """Succeeds when the broker delivers it again."""
    if not self.request.delivery_info["redelivered"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@shared_task(acks_late=True, acks_on_failure_or_timeout=False)
def fail_without_acknowledging():
    raise ValueError("rejected by the worker")


STOCK = {f"fail.{name}": simple(fail, "FAILURE", name) for name in STOCK_FAILURES}

CASES = {
    **STOCK,
    **{f"fail.{name}": simple(fail, ENDS, name) for name in MORE_FAILURES},
    **{f"fail.{name}": simple(fail, ENDS, name) for name in UNSTORABLE_FAILURES},
    **{f"dies.{name}": simple(fail, SEEN, name) for name in DEADLY_FAILURES},
    "dies.once": simple(die_once, SEEN),
    "fail.expected": simple(fail_as_expected, "FAILURE"),
    "fail.late_and_rejected": simple(fail_without_acknowledging, "FAILURE"),
}
