"""Chords: the daemon has the body called when the last member has ended.

`apply_chord` prepares the message for Celery's own task `celery.chord_unlock`, and publishes it with
the members to the daemon, which sends it on when all of them are stored. Celery's code then runs in
a worker as with any other backend: it joins the results and sends the body. A daemon that has no
tables for chords does not accept them, and the unlock task polls.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import celery
import kombu
from celery import states
from celery.app.trace import build_tracer
from celery.backends.base import Backend, get_current_task
from celery.canvas import Signature, maybe_signature
from celery.exceptions import ChordError, Ignore
from celery.result import GroupResult
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname
from kombu.utils.encoding import bytes_to_str, str_to_bytes
from kombu.utils.uuid import uuid

from . import message
from .publisher import RefusedError
from .waiting import leaves

if TYPE_CHECKING:
    import amqp
    from celery import Celery

logger = get_logger(__name__)

#: Celery's task (celery/app/builtins.py, 5.7.0), and the task message that reports its end to the
#: daemon. No worker has the second one: it is linked to the first, so that workers of any version
#: send it.
UNLOCK, UNLOCKED = "celery.chord_unlock", "celeriac.chord_unlocked"

#: Larger chords are completed by polling.
MAX_MEMBERS, MAX_BYTES = 100_000, 8_000_000

#: How often the unlock task looks again for a result that the daemon has stored: where there is no
#: row, where this worker cannot read results, and where the task runs again.
RETRIES_ABSENT, RETRIES_UNREADABLE, RETRIES_RUNNING = 10, 60, 600


class ChordBackend(Backend):
    """The part of the backend that is about chords."""

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """As in Celery. Like django-celery-results it also accepts a `GroupResult`."""
        if isinstance(header_result_args, GroupResult):
            header_result_args = (header_result_args.id, header_result_args.results)
        self.ensure_chords_allowed()
        header = self.app.GroupResult(*header_result_args)
        if not self._hand_over(header, body, kwargs):
            self.fallback_chord_unlock(header, body, **kwargs)

    def _hand_over(self, header: GroupResult, body: Signature, kwargs: dict[str, Any]) -> bool:
        """Publishes the chord to the daemon. Returns False if the daemon does not accept it."""
        if not self._has_brokers_in_common():
            return False
        members = list(dict.fromkeys(str(one.id) for one in leaves(header)))
        if not members or len(members) > MAX_MEMBERS or len(f"{header.id}") > 200:
            return False
        unlock_id = uuid()
        prepared = self._prepare(header, body, unlock_id, kwargs)
        if prepared["headers"].get("task") != UNLOCK:  # task protocol 1
            return False
        expires = self.app.conf.get("result_chord_expires")
        published = message.chord(str(header.id), unlock_id, members, seconds(expires), prepared)
        if published is None or len(published.body) > MAX_BYTES:
            return False
        try:
            return self._tell(published)
        except RefusedError as error:
            self._warn_once("chords are completed by polling", error)
            return False

    def _has_brokers_in_common(self) -> bool:
        """Whether tasks are sent to the broker of the results, so that the daemon can send one."""
        if self.options.broker is None:
            return True
        uris = [
            {url(one) for one in connection.alt or [connection.as_uri(include_password=True)]}
            for connection in (
                self.app.connection_for_write(self.options.broker),
                self.app.connection_for_write(),
            )
        ]
        return uris[0] == uris[1]

    def _prepare(
        self, header: GroupResult, body: Signature, unlock_id: str, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """What Celery would publish to start polling, as a line of a capture."""
        options, task = self.options, self.app.tasks[UNLOCK]
        report = Signature(
            UNLOCKED,
            app=self.app,
            immutable=True,
            options={
                "task_id": f"{header.id}/{unlock_id}",
                "exchange": options.exchange,
                "exchange_type": "direct",
                "routing_key": options.queue,
                "ignore_result": True,
            },
        )
        with self.app.producer_pool.acquire(block=True) as pooled:
            producer = CapturingProducer(pooled.channel, auto_declare=False)

            def apply_async(args: Any, kwargs: Any, countdown: Any = None, **more: Any) -> None:
                task.apply_async(
                    args,
                    kwargs,
                    producer=producer,
                    task_id=unlock_id,
                    link=report,
                    link_error=report,
                    add_to_parent=False,
                    **more,
                )

            tasks = {UNLOCK: SimpleNamespace(apply_async=apply_async)}
            app = SimpleNamespace(amqp=self.app.amqp, tasks=tasks)
            at_once = {**kwargs, "countdown": None}
            Backend.fallback_chord_unlock(SimpleNamespace(app=app), header, body, **at_once)
            return producer.captured

    def fallback_chord_unlock(self, *args: Any, **kwargs: Any) -> None:
        """As in Celery, but `celery.chord_unlock` does not become a child of the current task."""
        task = self.app.current_worker_task
        children = task.request.children if task else []
        known = len(children)
        super().fallback_chord_unlock(*args, **kwargs)
        del children[known:]

    # Members ------------------------------------------------------------------------------------

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Adds a task to the chord of the current task (`Task.add_to_chord`)."""
        request = get_current_task().request
        ids = [str(one.id) for one in leaves(result)]
        if not self._tell(message.chord_member(request.id, added=ids)):
            raise NotImplementedError("add_to_chord needs a daemon that has the tables for chords")
        # Another daemon may store the end of this task before it stores this message.
        request.__dict__.setdefault("celeriac_added", []).extend(ids)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Publishes the result of a member that does not store it. That of any other member is in
        the message of `_store_result`."""
        if request.id is None or request.id in self._stored_members:
            return
        encoded = self.encode_content(self.encode_result(result, state))
        self._tell(message.chord_member(request.id, value=(state, *encoded)))

    def _tell(self, published: amqp.Message) -> bool:
        """Publishes a message about chords. Returns False if no daemon keeps chords."""
        return self.publisher.publish(published, self._policy(), is_chord=True)

    def _chord_columns(self, request: Any, task_id: Any, state: str) -> dict[str, Any]:
        """What the message with a task's state says about chords."""
        if not getattr(request, "chord", None):
            return {}
        if state in states.READY_STATES:
            self._stored_members[task_id] = True
        added = request.__dict__.get("celeriac_added") if hasattr(request, "__dict__") else None
        return {"is_chord_member": True, "added": added or None}

    # Unlocking ----------------------------------------------------------------------------------

    def before_unlock(self, request: Any, kwargs: dict[str, Any]) -> None:
        """Before `celery.chord_unlock` runs: makes the results known that came with the message, or
        reads those that did not, all at once."""
        # The headers do not survive a retry, and the arguments do.
        group_id = getattr(request, "celeriac_chord", None) or kwargs.get("celeriac_chord")
        if not group_id:
            return
        kwargs["celeriac_chord"] = group_id
        try:
            self._prepare_results(request, group_id, kwargs)
        except Ignore:
            raise
        except Exception as error:
            # Celery reads the results, or tries again.
            logger.warning("chord %s: its results could not be prepared: %r", group_id, error)
            if kwargs.get("max_retries") is None:
                kwargs["max_retries"] = RETRIES_RUNNING

    def _prepare_results(self, request: Any, group_id: str, kwargs: dict[str, Any]) -> None:
        delivery = request.delivery_info or {}
        is_again = getattr(request, "celeriac_unlocks", 0) or delivery.get("redelivered")
        can_read = self._can_read()
        if is_again and can_read and self.reader.is_unlocked(group_id, request.id):
            raise Ignore("the chord was unlocked before")
        header = list(ids_in(kwargs["result"]))
        results = getattr(request, "celeriac_results", None)
        metas: dict[str, Any] = {}
        if results is not None:
            values = json.loads(results)
        else:
            values = self.reader.chord_values(group_id) if can_read else []
        members = [value[0] for value in values]
        for task_id, *value in values:
            if value[0] is not None:
                metas[task_id] = self._meta(task_id, *value)
        if results is None and can_read:
            unknown = [one for one in dict.fromkeys([*header, *members]) if one not in metas]
            found = self.final_metas(unknown)
            metas.update((one, meta) for one, meta in found.items() if isinstance(meta, dict))
        # Tasks that members have added. Redis appends their results, too.
        known = set(header)
        added = [one for one in members if one not in known]
        kwargs["result"] = [*kwargs["result"], *(((one, None), None) for one in added)]
        unready = {one for one in [*header, *added] if one not in metas}
        if unready and kwargs.get("max_retries") is None:
            kwargs["max_retries"] = self._retries(unready, can_read)
        request.celeriac_metas = metas

    def _retries(self, unready: set[str], can_read: bool) -> int:
        if not can_read:
            return RETRIES_UNREADABLE
        return RETRIES_RUNNING if self.reader.count(unready) == len(unready) else RETRIES_ABSENT

    def _meta(
        self, task_id: str, state: str, content_type: str, content_encoding: str, encoded: Any
    ) -> dict[str, Any]:
        if encoded is not None and content_encoding == "binary":
            encoded = base64.b64decode(encoded)
        result = None
        if encoded is not None:
            result = kombu.serialization.loads(
                encoded,
                content_type=content_type,
                content_encoding=content_encoding,
                accept=self.accept,
            )
        meta = {
            "task_id": task_id,
            "status": state,
            "result": result,
            "traceback": None,
            "children": [],
        }
        return self.meta_from_decoded(meta)

    @staticmethod
    def _known_metas() -> dict[str, Any]:
        """The results that the chord needs that is being unlocked here."""
        request = getattr(get_current_task(), "request", None)
        return getattr(request, "celeriac_metas", None) or {}

    @property
    def supports_native_join(self) -> bool:
        """False while a chord is unlocked: Celery's `join_native` leaves out the first of two
        members with one id."""
        return not self._known_metas()

    def get_task_meta(self, task_id: Any, cache: bool = True) -> Any:
        known = self._known_metas().get(task_id)
        return super().get_task_meta(task_id, cache) if known is None else known

    def mark_as_failure(self, task_id: Any, exc: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Celery. Celery before 5.7 leaves the body PENDING when its unlock task gives up."""
        request = kwargs.get("request") or (args[1] if len(args) > 1 else None)
        if getattr(request, "task", None) == UNLOCK and celery.VERSION < (5, 7):
            callback = maybe_signature(request.args[1], app=self.app)
            reason = f"chord_unlock could not be retried: {exc!r}"
            self.chord_error_from_stack(callback, ChordError(reason))
        return super().mark_as_failure(task_id, exc, *args, **kwargs)


class CapturingProducer(kombu.Producer):
    """Keeps the first message instead of publishing it. Further ones are events about it."""

    captured: dict[str, Any] = {}

    def _publish(
        self,
        body: Any,
        priority: int | None,
        content_type: str,
        content_encoding: str,
        headers: dict[str, Any],
        properties: dict[str, Any],
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        exchange: str,
        declare: Iterable[Any],
        *_: Any,
        **__: Any,
    ) -> None:
        if self.captured:
            return
        for entity in declare or ():
            self.maybe_declare(entity)
        given = {
            "content_type": content_type,
            "content_encoding": content_encoding,
            "priority": priority,
            **properties,
        }
        self.captured = {
            "exchange": exchange or "",
            "routing_key": routing_key,
            "properties": {name: value for name, value in given.items() if value is not None},
            "headers": headers,
            "body_b64": bytes_to_str(base64.b64encode(str_to_bytes(body))),
        }


def install(sender: Celery, **_: Any) -> None:
    """Prepares the unlock task of an app: RabbitMQ keeps its message until it has run."""
    task = sender.tasks[UNLOCK]
    # A worker that is running has already decided when it acknowledges (`create_request_cls` in
    # celery/worker/request.py, 5.7.0), and would then never do so.
    is_running = task.__trace__ is not None
    if not is_running:
        task.acks_late = task.reject_on_worker_lost = True

    def before_start(self: Any, task_id: str, args: Any, kwargs: dict[str, Any]) -> None:
        if isinstance(self.backend, ChordBackend):
            self.backend.before_unlock(self.request, kwargs)

    # Celery looks for it in the class, of which the task is the only instance.
    type(task).before_start = before_start
    if is_running:
        # It looks for `before_start` only once.
        task.__trace__ = build_tracer(UNLOCK, task, sender.loader, gethostname(), app=sender)


def ids_in(results: Iterable[Any]) -> Iterable[str]:
    """The ids of single tasks in results that `as_tuple` has made."""
    for (task_id, *_), nodes in results:
        if nodes is None:
            yield task_id
        else:
            yield from ids_in(nodes)


def seconds(expires: Any) -> float | None:
    if not expires:
        return None
    return expires.total_seconds() if isinstance(expires, timedelta) else float(expires)


def url(broker: str) -> str:
    return kombu.Connection(broker).as_uri(include_password=True)
