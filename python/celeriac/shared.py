"""Objects that all threads of a process share, and that a forked child must not inherit."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from .options import Options

if TYPE_CHECKING:
    from celery import Celery

T = TypeVar("T", bound="Shared")


class Forgetful:
    """Begins anew in a forked child, without what belongs to the parent."""

    def __init__(self) -> None:
        _alive.add(self)

    def forget_inherited(self) -> None:
        raise NotImplementedError


class Shared(Forgetful):
    """One object serves all backends of an app: up to Celery 5.2 each thread has its own backend.
    """

    def __init__(self, app: Celery, options: Options) -> None:
        super().__init__()
        self._app = weakref.proxy(app)
        self._options = options

    @classmethod
    def of(cls: type[T], app: Celery, options: Options) -> T:
        """The object of this process for an app and its options."""
        notice_fork()
        found = _shared.setdefault(app, {})
        key = (cls, options)
        # Another thread may be the first; an object that is not used yet has opened nothing.
        return found.get(key) or found.setdefault(key, cls(app, options))


_shared: weakref.WeakKeyDictionary[Celery, dict[Any, Any]] = weakref.WeakKeyDictionary()
_alive: weakref.WeakSet[Forgetful] = weakref.WeakSet()
_pid = os.getpid()


def notice_fork() -> None:
    """For uWSGI, which forks without telling Python."""
    if _pid != os.getpid():
        _after_fork_in_child()


def _after_fork_in_child() -> None:
    global _pid
    _pid = os.getpid()
    for one in list(_alive):
        one.forget_inherited()


# Not on Windows, which has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
