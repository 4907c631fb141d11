"""The result backend `celeriac://`, which publishes what django-celery-results would write.

Writing needs neither Django nor a database. Reading uses django-celery-results, which is imported
when a result is read for the first time. How a process waits for results is in `waiting`.

Checked against Celery 5.2.7 to 5.7.0 and django-celery-results 2.6.0.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import BaseDictBackend, get_current_task, unpickle_backend
from celery.exceptions import BackendGetMetaError, ImproperlyConfigured
from celery.result import AsyncResult
from celery.utils.functional import LRUCache
from celery.utils.log import get_logger
from celery.utils.serialization import b64encode

from . import message
from .chords import ChordBackend, install
from .options import Options, configured_url
from .publisher import Publisher, PublishError, RefusedError
from .waiting import ResultConsumer, unready

if TYPE_CHECKING:
    import amqp
    from celery import Celery
    from django_celery_results.backends.database import DatabaseBackend

logger = get_logger(__name__)

#: The `content_type` of rows that are known only from events (`src/row/task_result.rs`).
EVENT = "application/vnd.celeriac.event+json"

#: How much later FAILURE and REVOKED count, as the daemon's setting `clock-tolerance` by default.
CLOCK_TOLERANCE = timedelta(seconds=2)

#: How many rows are read with one statement. Oracle and old versions of SQLite allow 1,000 values.
ROWS = 500


class ReadingError(ImproperlyConfigured, BackendGetMetaError):
    """Results cannot be read in this process; the text says what is missing.

    It is a `BackendGetMetaError` so that a worker that only looks up a task for
    `worker_deduplicate_successful_tasks` does not fail the task (celery/app/trace.py, 5.7.0).
    """


class CeleriacBackend(ChordBackend, AsyncBackendMixin, BaseDictBackend):
    """Publishes states of tasks and saved groups; reads the tables that Celeriac writes."""

    def __init__(self, app: Celery, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app, url=url, **kwargs)
        self.options = Options.parse(url)
        # From Celery 5.3 on, all threads and greenlets share one backend.
        self.thread_safe = True
        self._kwargs = kwargs
        self._reader: DatabaseBackend | None = None
        self._saved_groups = LRUCache(limit=100)
        #: When the tasks began that this process runs, by their ids.
        self._started = LRUCache(limit=1000)
        #: The members of chords whose final state was published.
        self._stored_members = LRUCache(limit=1000)
        self._warned: set[str] = set()
        if app.finalized:
            install(app)
        else:
            app.on_after_finalize.connect(install)
        self.result_consumer = ResultConsumer(
            self, app, self.accept, self._pending_results, self._pending_messages
        )

    def as_uri(self, include_password: bool = False) -> str:
        return self.options.as_uri(include_password=include_password)

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        # A broker in the URL may have a password, which must not get into messages and rows.
        url = replace(self.options, broker=None).as_uri()
        return unpickle, (type(self), args, {"url": url, **self._kwargs, **(kwargs or {})})

    # Writing ------------------------------------------------------------------------------------

    def store_result(
        self,
        task_id: Any,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As in Celery, with a `date_done` that stays the same when `_store_result` is retried.

        The result of a task that runs eagerly (`task_store_eager_result`) is written at once, in
        the caller's own transaction.
        """
        if getattr(request, "is_eager", False) and self._can_read():
            return self.reader.store_result(
                task_id, result, state, traceback=traceback, request=request, **kwargs
            )
        kwargs.setdefault("date_done", message.now())
        return super().store_result(task_id, result, state, traceback, request=request, **kwargs)

    def _store_result(
        self,
        task_id: Any,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        date_done: str | None = None,
        **_: Any,
    ) -> Any:
        """Publishes the columns that `_store_result` of django-celery-results writes
        (django_celery_results/backends/database.py, 2.6.0).

        Unlike there, the traceback is included even without `result_extended`.
        """
        if state == states.REVOKED and request is None and not self._can_read():
            # `_revoke` of a worker that knows nothing of the task (celery/worker/control.py, 5.7.0)
            # asks for its state first, and gets PENDING here. The worker that has the task stores
            # its state.
            return None
        date_done = date_done or message.now()
        if state == states.STARTED:
            self._started[task_id] = date_done
        content_type, content_encoding, encoded = self.encode_content(result)
        extended = self.app.conf.find_value_for_key("extended", "result")
        described = request if request and extended else None
        meta = {
            **self._get_meta_from_request(request),
            "children": self.current_task_children(request),
        }
        columns = {
            "status": state,
            "content_type": content_type,
            "content_encoding": content_encoding,
            "result": encoded,
            "meta": self.encode_content(meta)[2],
            "traceback": traceback,
            **self._extended_properties(described),
        }
        if (
            state == states.STARTED
            and self.options.started == "direct"
            and self._store_started(task_id, date_done, columns)
        ):
            return encoded
        # The last two are the columns that pull request 514 adds to django-celery-results.
        more = {
            "date_started": self._started.get(task_id),
            "queue": (getattr(described, "delivery_info", None) or {}).get("routing_key"),
            "retries": getattr(described, "retries", None),
            **self._chord_columns(request, task_id, state),
        }
        try:
            self._publish(message.task_result(task_id, date_done, columns, **more))
        except PublishError as error:
            error.task_id, error.state = str(task_id), str(state)
            raise
        if state in states.READY_STATES:
            self._started.pop(task_id, None)
        return encoded

    def _store_started(self, task_id: Any, date_done: str, columns: dict[str, Any]) -> bool:
        """Writes STARTED to the database, so that the row is there when the body begins. Returns
        False if that is not possible; the daemon then stores it.

        A row is changed only if STARTED is newer (`src/row/merge.rs`), whatever has happened since
        it was read. A SUCCESS is never changed.
        """
        try:
            return self.reader.store_started(task_id, date_done, columns)
        except Exception as error:
            self._warn_once("STARTED is sent to the daemon and not written directly", error)
            return False

    def _extended_properties(self, request: Any) -> dict[str, Any]:
        """As `_get_extended_properties` of django-celery-results, without the traceback. `request`
        is None without `result_extended`."""

        def arguments(representation: str, raw: str) -> Any:
            # Messages of task protocol 1 have only the arguments, not their `repr`.
            value = getattr(request, representation, None)
            if value is None:
                value = getattr(request, raw, None)
            return None if value is None else self.encode_content(value)[2]

        return {
            "task_name": getattr(request, "task", None),
            "task_args": arguments("argsrepr", "args"),
            "task_kwargs": arguments("kwargsrepr", "kwargs"),
            "worker": getattr(request, "hostname", None),
            "periodic_task_name": getattr(request, "periodic_task_name", None),
        }

    def _get_meta_from_request(self, request: Any = None) -> dict[str, Any]:
        """The `request.meta` that the task set, or that its caller sent as the header `meta`."""
        request = request or getattr(get_current_task(), "request", None)
        return getattr(request, "meta", None) or {}

    def encode_content(self, data: Any) -> tuple[str, str, Any]:
        content_type, content_encoding, content = self._encode(data)
        if content_encoding == "binary":
            content = b64encode(content)
        return content_type, content_encoding, content

    def _save_group(self, group_id: str, result: Any) -> Any:
        content_type, content_encoding, encoded = self.encode_content(result.as_tuple())
        date_done = message.now()
        self._publish(
            message.group_result(group_id, date_done, content_type, content_encoding, encoded)
        )
        # The process that saved a group can restore it at once, before the row exists.
        meta = {"group_id": group_id, "result": result, "date_done": date_done}
        self._saved_groups[group_id] = meta
        return result

    def _publish(self, published: amqp.Message) -> None:
        self.publisher.publish(published, self._policy())

    def _policy(self) -> Any:
        # With `result_backend_always_retry`, Celery itself retries.
        return None if self.always_retry else self.retry_policy

    @property
    def publisher(self) -> Publisher:
        return Publisher.of(self.app, self.options)

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        if isinstance(exc, PublishError):
            return not isinstance(exc, RefusedError)
        return self._reader is not None and self._reader.exception_safe_to_retry(exc)

    # Reading ------------------------------------------------------------------------------------

    @property
    def reader(self) -> DatabaseBackend:
        """The backend of django-celery-results with our settings, or a `ReadingError`."""
        if self._reader is None:
            self._reader = database_backend()(self.app, **self._kwargs)
        return self._reader

    def _can_read(self) -> bool:
        try:
            return self.reader is not None
        except ReadingError:
            return False

    @property
    def TaskModel(self) -> Any:  # noqa: N802, as django-celery-results calls it
        return self.reader.TaskModel

    @property
    def GroupModel(self) -> Any:  # noqa: N802, as django-celery-results calls it
        return self.reader.GroupModel

    def decode_content(self, obj: Any, content: Any) -> Any:
        return self.reader.decode_content(obj, content)

    def get_state(self, task_id: str) -> str:
        """The state of a task, or PENDING in a worker that cannot read results.

        Celery reads the state before it marks tasks as revoked or as failed with their chain
        (celery/worker/control.py `_revoke`, celery/backends/base.py `_fail_chain`, 5.7.0). An
        error would prevent that. If the task has already ended, the daemon keeps its outcome.
        `AsyncResult.state` does not call this method, and raises the error.
        """
        try:
            return super().get_state(task_id)
        except ReadingError as error:
            self._warn_once("the state of every task is reported as PENDING", error)
            return states.PENDING

    get_status = get_state

    def _warn_once(self, what: str, error: Exception) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s: %s", what, error)

    def _get_task_meta_for(self, task_id: Any) -> Any:
        return self.reader._get_task_meta_for(task_id)

    def final_metas(self, task_ids: Iterable[str]) -> dict[str, Any]:
        """What `get_task_meta` returns for those of the tasks that have ended.

        Where a row cannot be decoded, the meta is the exception.
        """
        found: dict[str, Any] = {}
        unknown = []
        unlocking = self._known_metas()
        for task_id in task_ids:
            cached = unlocking.get(task_id) or self._cache.get(task_id) or {}
            if cached.get("status") in states.READY_STATES:
                found[task_id] = cached
            else:
                unknown.append(task_id)
        for first in range(0, len(unknown), ROWS):
            # Unlike `get_task_meta`, this does not repeat what fails; the waits do.
            reader = self.reader.with_rows(unknown[first : first + ROWS])
            for task_id in reader.TaskModel:
                try:
                    meta = reader._get_task_meta_for(task_id)
                except Exception as error:
                    found[task_id] = error
                    continue
                if meta["status"] == states.SUCCESS:
                    self._cache[task_id] = meta
                if meta["status"] in states.READY_STATES:
                    found[task_id] = meta
        return found

    def _forget(self, task_id: str) -> None:
        try:
            self.reader._forget(task_id)
        except ReadingError as error:
            self._warn_once("rows of results are not deleted when they are forgotten", error)

    def cleanup(self) -> None:
        try:
            self.reader.cleanup()
        except ReadingError as error:
            self._warn_once("celery.backend_cleanup deletes no rows", error)

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        saved = self._saved_groups.get(group_id)
        try:
            meta = self.reader._restore_group(group_id)
        except ReadingError:
            if saved is None:
                raise
            return saved
        if not meta or meta["result"] is None:
            return saved or meta
        self._saved_groups.pop(group_id, None)
        return meta

    def _delete_group(self, group_id: str) -> None:
        self._saved_groups.pop(group_id, None)
        try:
            self.reader._delete_group(group_id)
        except ReadingError as error:
            self._warn_once("rows of groups are not deleted", error)

    # Waiting ------------------------------------------------------------------------------------

    def add_pending_result(
        self, result: AsyncResult, weak: bool | None = None, start_drainer: bool = True
    ) -> AsyncResult:
        """Registers a result that has a callback. `AsyncResult.get` calls this without `weak`, and
        then waits, which needs no register."""
        if weak is None:
            return result
        if not weak:
            self.result_consumer.keep(result)
        return super().add_pending_result(result, weak=True, start_drainer=start_drainer)

    def iter_native(
        self, result: Any, no_ack: bool = True, **kwargs: Any
    ) -> Iterator[tuple[str, Any]]:
        """Yields the results of a group as they become ready."""
        self._ensure_not_eager()
        nodes = deque(result.results)
        with closing(self._wait_for_pending(result, no_ack=no_ack, **kwargs)) as waiting:
            for _ in chain([None], waiting):
                for _ in range(len(nodes)):
                    node = nodes.popleft()
                    if unready(node):
                        nodes.append(node)
                    else:
                        is_group = not hasattr(node, "_cache")
                        yield node.id, node.children if is_group else node._cache

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        max_iterations: int | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields ids and metas as the tasks end. With `max_iterations`, rows are read so often."""
        self._ensure_not_eager()
        ids = set(map(str, task_ids))
        consumer = self.result_consumer
        with closing(consumer.metas(ids, timeout, interval, on_interval, max_iterations)) as found:
            for meta in chain.from_iterable(found):
                if on_message:
                    on_message(meta)
                yield meta["task_id"], meta


def unpickle(
    backend_class: type[CeleriacBackend], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> CeleriacBackend:
    """As in Celery, with the broker that this process's configuration names."""
    backend = unpickle_backend(backend_class, args, kwargs)
    broker = Options.parse(configured_url(backend.app)).broker
    backend.options = replace(backend.options, broker=broker)
    return backend


class Rows(dict):
    """Rows of tasks that have ended, in place of the model `TaskResult` and its manager."""

    def __init__(self, model: Any, task_ids: list[str]) -> None:
        rows = model._default_manager.filter(
            task_id__in=task_ids, status__in=sorted(states.READY_STATES)
        )
        super().__init__((row.task_id, row) for row in rows.order_by())

    @property
    def _default_manager(self) -> Rows:
        return self

    get_task = dict.__getitem__


class EventText(str):
    """The `repr` of a result or of arguments from an event, which no serializer can decode."""

    __slots__ = ()


@cache
def database_backend() -> type[DatabaseBackend]:
    """The class that reads results, derived from that of django-celery-results. Raises a
    `ReadingError` if results cannot be read."""
    try:
        from django.apps import apps
    except ImportError as error:
        raise ReadingError(
            "results of celeriac:// are read from Django's database, and Django is not installed "
            "here: read them in a process of the Django project"
        ) from error
    if not apps.models_ready:
        raise ReadingError(
            "results of celeriac:// are read from Django's database, and Django is not set up "
            "here: set DJANGO_SETTINGS_MODULE and call django.setup()"
        )
    if not apps.is_installed("django_celery_results"):
        raise ReadingError(
            "results of celeriac:// are read with django-celery-results: install it, and add "
            "'django_celery_results' to INSTALLED_APPS"
        )
    from django.conf import settings
    from django.db import InterfaceError, OperationalError, connections, models, router
    from django.utils.timezone import make_naive
    from django_celery_results.backends.database import DatabaseBackend
    from django_celery_results.models import TaskResult

    has_app = apps.is_installed("celeriac")

    class Reader(DatabaseBackend):
        """Reports a task whose end is known only from an event as STARTED, because its result has
        not arrived yet, or is stored elsewhere or nowhere."""

        def with_rows(self, task_ids: list[str]) -> Reader:
            """A copy that knows these tasks' rows, if they have ended, and no others."""
            copy = object.__new__(type(self))
            with self._mending():
                copy.__dict__ = {**self.__dict__, "TaskModel": Rows(self.TaskModel, task_ids)}
            return copy

        def _get_task_meta_for(self, task_id: Any) -> Any:
            with self._mending():
                return super()._get_task_meta_for(task_id)

        @contextmanager
        def _mending(self) -> Iterator[None]:
            try:
                yield
            except (InterfaceError, OperationalError):
                self._mend()
                raise

        def _mend(self) -> bool:
            """Closes a broken connection, so that the next statement opens another. Django does so
            only between requests. Returns False in a transaction, which would be lost."""
            for database in {router.db_for_read(TaskResult), router.db_for_write(TaskResult)}:
                connection = connections[database]
                has_begun = connection.connection and not connection.autocommit
                if connection.in_atomic_block or has_begun:
                    return False
                connection.close_if_unusable_or_obsolete()
            return True

        def exception_safe_to_retry(self, exc: BaseException) -> bool:
            """django-celery-results names only `InterfaceError`, and psycopg raises the other."""
            return isinstance(exc, (InterfaceError, OperationalError)) and self._mend()

        def store_started(self, task_id: Any, date_done: str, columns: dict[str, Any]) -> bool:
            """Inserts a row, or updates one that is older. django-celery-results would overwrite
            any row."""
            time = datetime.fromisoformat(date_done)
            if not settings.USE_TZ:
                time = make_naive(time)
            names = {field.name for field in self.TaskModel._meta.fields}
            given = {**columns, "date_started": time}
            values = {name: value for name, value in given.items() if name in names}
            database = router.db_for_write(self.TaskModel)
            try:
                rows = self.TaskModel._default_manager.using(database)
                _, is_new = rows.get_or_create(task_id=task_id, defaults=values)
                if not is_new:
                    ended = models.Q(status__in=states.READY_STATES)
                    rows.filter(
                        ~ended & models.Q(date_done__lt=time)
                        | ended & models.Q(date_done__lt=time - CLOCK_TOLERANCE),
                        task_id=task_id,
                    ).exclude(status=states.SUCCESS).update(**values, date_done=time)
            except Exception:
                connections[database].close_if_unusable_or_obsolete()
                raise
            return True

        def is_unlocked(self, group_id: str, unlock_id: str) -> bool:
            chords = self._chord_rows("Chord")
            ended = {"group_id": group_id, "unlock_id": unlock_id, "done_at__isnull": False}
            return chords is not None and chords.filter(**ended).exists()

        def chord_values(self, group_id: str) -> list[list[Any]]:
            """The members of a chord, with the results that have no rows."""
            members = self._chord_rows("ChordMember")
            if members is None:
                return []
            rows = members.filter(group_id=group_id).order_by("id")
            return [
                [task_id, *(json.loads(value) if value else [None])]
                for task_id, value in rows.values_list("task_id", "value")
            ]

        def _chord_rows(self, model: str) -> Any:
            """The manager of a model of the app `celeriac`; None if the app is not installed."""
            return apps.get_model("celeriac", model).objects if has_app else None

        def cleanup(self) -> None:
            """As in django-celery-results, but rows of members of open chords are kept."""
            members = self._chord_rows("ChordMember")
            if not self.expires or members is None or not self._has_table(members.model):
                return super().cleanup()
            for rows in (self.TaskModel._default_manager, self.GroupModel._default_manager):
                expired = rows.get_all_expired(self.expires)
                if rows.model is self.TaskModel:
                    expired = expired.exclude(task_id__in=members.values("task_id"))
                expired.delete()

        def _has_table(self, model: Any) -> bool:
            """Whether the table of a model is where the results are."""
            introspection = connections[router.db_for_write(self.TaskModel)].introspection
            return model._meta.db_table in introspection.table_names()

        def count(self, task_ids: Iterable[str]) -> int:
            rows = self.TaskModel._default_manager.filter(task_id__in=list(task_ids))
            return rows.order_by().count()

        def decode_content(self, obj: Any, content: Any) -> Any:
            if content is not None and obj.content_type == EVENT:
                return EventText(content)
            return super().decode_content(obj, content)

        def meta_from_decoded(self, meta: dict[str, Any]) -> dict[str, Any]:
            if isinstance(meta["result"], EventText):
                meta["result"] = None
                if meta["status"] in states.READY_STATES:
                    meta["status"] = states.STARTED
            return super().meta_from_decoded(meta)

    return Reader
