"""Tasks with several states: retries, custom states, Ignore and Reject."""

import celery
from celery import Task, current_app, shared_task
from celery.exceptions import Ignore, Reject, Retry

from .cases import ENDS, MAYBE, NO_ROW, SEEN, SOON, called, child_id_of, echo, simple


@shared_task(bind=True, max_retries=3)
def retry_then(self, retries, outcome):
    if self.request.retries < retries:
        raise self.retry(exc=ConnectionError("try again"), countdown=SOON)
    return outcome


@shared_task(bind=True, max_retries=1)
def retry_for_ever(self, with_error):
    raise self.retry(exc=ConnectionError("never") if with_error else None, countdown=SOON)


@shared_task(bind=True)
def retry_with_other_args(self, number):
    """The row has the arguments of the last attempt."""
    if number < 2:
        raise self.retry(args=(number + 1,), countdown=SOON)
    return number


@shared_task(autoretry_for=(OSError,), retry_kwargs={"max_retries": 1, "countdown": SOON})
def autoretry():
    raise OSError(5, "input/output error")


@shared_task(autoretry_for=(OSError,), retry_backoff=1, retry_jitter=False, max_retries=1)
def autoretry_with_backoff():
    raise OSError("backs off")


@shared_task(bind=True, max_retries=None)
def retry_in_handler(self, kind):
    """The current exception becomes the reason of the retry."""
    if self.request.retries:
        return "handled"
    try:
        {}["missing"]
    except KeyError as error:
        if kind == "implicit":
            raise self.retry(countdown=SOON)
        if kind == "explicit":
            raise self.retry(exc=error, countdown=SOON)
        raise self.retry(countdown=SOON) from error


@shared_task(bind=True)
def retry_waiting(self, reason):
    """The row shows a retry that happens only after the test."""
    reasons = {"error": ValueError("later", {"a": 1}), "none": None, "set": ValueError({1})}
    raise self.retry(exc=reasons[reason], countdown=3600)


@shared_task(bind=True)
def retry_elsewhere(self):
    if self.request.delivery_info["routing_key"] == "other":
        return "elsewhere"
    raise self.retry(queue="other", countdown=SOON)


@shared_task(bind=True)
def retry_without_raising(self):
    if not self.request.retries:
        self.retry(throw=False, countdown=SOON)
        return "not raised"
    return "again"


@shared_task(bind=True, max_retries=0)
def retry_forbidden(self):
    self.retry(exc=ValueError("no retries"), countdown=SOON)


@shared_task(bind=True)
def retry_with_keywords(self, number=0, **others):
    if number < 1:
        raise self.retry(kwargs={"number": number + 1, "extra": "é"}, countdown=SOON)
    return [number, others]


@shared_task
def raise_retry():
    """Stores the state RETRY, but sends no message."""
    raise Retry("by hand", exc=ValueError("reason"), when=5)


@shared_task(bind=True)
def progress(self, state, meta, end):
    """Sets a custom state, and then ends as `end` says or keeps that state."""
    self.update_state(state=state, meta=meta)
    if end == "ignore":
        raise Ignore()
    if end == "fail":
        raise ValueError("after progress")
    return end


@shared_task(bind=True)
def progress_often(self, steps):
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"step": step, "of": steps})
    return steps


OWN_STATES = {
    "set": ("PROGRESS", {1, 2}),
    "bytes": ("PROGRESS", b"\xff\x00"),
    "text": ("PROGRESS", "half way"),
    "list": ("PROGRESS", [1, None]),
    "exception": ("PROGRESS", ValueError("in between")),
    "unicode": ("WARTET 🥬", {"é": 1}),
    "at_length": ("S" * 50, None),
    "lower": ("success", {"not": "SUCCESS"}),
    "pending": ("PENDING", {"told": "pending"}),
    "received": ("RECEIVED", None),
    "started": ("STARTED", {"by": "hand"}),
    "retry": ("RETRY", {"by": "hand"}),
    "retry_error": ("RETRY", ValueError("by hand")),
    "failure": ("FAILURE", {"exc_type": "ValueError", "exc_message": ["by hand"]}),
    "failure_bare": ("FAILURE", {"custom": "..."}),
    "failure_text": ("FAILURE", "only text"),
    "failure_error": ("FAILURE", KeyError("by hand")),
    "revoked": ("REVOKED", {"reason": "by hand"}),
    "revoked_error": ("REVOKED", KeyError("by hand")),
    "success": ("SUCCESS", {"result": "by hand"}),
    "ignored": ("IGNORED", None),
    "rejected": ("REJECTED", "by hand"),
}


@shared_task(bind=True)
def tell(self, name, end):
    state, meta = OWN_STATES[name]
    self.update_state(state=state, meta=meta)
    if end == "ignore":
        raise Ignore()
    return end


@shared_task(bind=True)
def tell_of_another(self, other_id):
    self.update_state(task_id=other_id, state="PROGRESS", meta={"told by": "another"})


@shared_task(bind=True)
def tell_to_backend(self, other_ids):
    """Code can call the backend directly."""
    backend = self.backend
    stored, failed, done, started, extended = other_ids
    backend.store_result(stored, {"stored": 1}, "STORED", traceback="a text of its own")
    backend.mark_as_failure(failed, ValueError("marked"), traceback="Traceback: by hand")
    backend.mark_as_done(done, ["marked", 1])
    backend.mark_as_started(started, by="hand")
    backend.store_result(extended, None, "SUCCESS", request=self.request)


@shared_task
def ignore():
    raise Ignore()


@shared_task
def reject():
    raise Reject("rejected", requeue=False)


@shared_task(bind=True, acks_late=True)
def reject_once(self):
    if not self.request.delivery_info["redelivered"]:
        raise Reject("once more", requeue=True)
    return "at the second attempt"


@shared_task(track_started=False)
def untracked(end):
    if end == "ignore":
        raise Ignore()
    if end == "fail":
        raise ValueError("never seen starting")
    return end


@shared_task(acks_late=True)
def late():
    return "acknowledged late"


# Ignored results ---------------------------------------------------------------------------


@shared_task(ignore_result=True)
def unwanted(end="done"):
    if end == "fail":
        raise ValueError("unwanted")
    return end


@shared_task(ignore_result=True, store_errors_even_if_ignored=True)
def unwanted_but_errors(end="done"):
    if end == "fail":
        raise ValueError("wanted after all")
    return end


@shared_task(bind=True, ignore_result=True)
def unwanted_progress(self):
    self.update_state(state="PROGRESS", meta={"unwanted": True})


@shared_task(bind=True, ignore_result=True)
def unwanted_retry(self):
    if not self.request.retries:
        raise self.retry(countdown=SOON)


@shared_task(bind=True, ignore_result=True, store_errors_even_if_ignored=True, max_retries=1)
def unwanted_retry_but_errors(self):
    raise self.retry(exc=ValueError("again"), countdown=SOON)


# Handlers ------------------------------------------------------------------------------------


class Handled(Task):
    """Its handlers do what the arguments of the task say."""

    abstract = True

    def _act(self, when, args):
        if not args or args[0] != when:
            return
        if args[1] == "raise":
            raise RuntimeError(f"in on_{when}")
        if args[1] == "tell":
            self.update_state(state="HANDLED", meta={"when": when})
        if args[1] == "spawn":
            echo.apply_async((when,), task_id=child_id_of(self.request.id, "child"))

    def before_start(self, task_id, args, kwargs):
        self._act("start", args)

    def on_success(self, retval, task_id, args, kwargs):
        self._act("success", args)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self._act("failure", args)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self._act("retry", args)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self._act("return", args)


@shared_task(base=Handled, bind=True)
def handled(self, when, what):
    if when == "failure":
        raise ValueError("for the handler")
    if when == "retry" and not self.request.retries:
        raise self.retry(countdown=0.3)
    return [when, what]


def handles(when, what, status=SEEN):
    def publish(task_id):
        handled.apply_async((when, what), task_id=task_id)
        child = {child_id_of(task_id, "child"): "SUCCESS"} if what == "spawn" else {}
        return {task_id: status, **child}

    return publish


def publish_other(task_id):
    other = child_id_of(task_id, "other")
    tell_of_another.apply_async((other,), task_id=task_id)
    return {task_id: "SUCCESS", other: "PROGRESS"}


def publish_to_backend(task_id):
    ends = {
        "stored": "STORED",
        "failed": "FAILURE",
        "done": "SUCCESS",
        "started": "STARTED",
        "extended": "SUCCESS",
    }
    others = {child_id_of(task_id, name): status for name, status in ends.items()}
    tell_to_backend.apply_async((list(others),), task_id=task_id)
    return {task_id: "SUCCESS", **others}


def publish_from_caller(task_id):
    """Stores a result without a worker and without a request."""
    current_app.backend.store_result(task_id, {"from": "the caller"}, "SUCCESS")
    return {task_id: "SUCCESS"}


def publish_failure_from_caller(task_id):
    error = ValueError("from the caller")
    current_app.backend.mark_as_failure(task_id, error, traceback="Traceback: by hand")
    return {task_id: "FAILURE"}


# Up to 5.5 the row stays STARTED, and 4.4 does not know the option.
IGNORED_BY_CALL = NO_ROW if celery.VERSION >= (5, 6) else "STARTED"
if celery.VERSION < (5,):
    IGNORED_BY_CALL = "SUCCESS"
REJECTED = "FAILURE" if celery.VERSION >= (5, 7) else "STARTED"

STOCK = {
    "retry.success": simple(retry_then, "SUCCESS", 2, "at last"),
    "retry.exhausted": simple(retry_for_ever, "FAILURE", True),
    "retry.exhausted_without_error": simple(retry_for_ever, "FAILURE", False),
    "retry.other_args": simple(retry_with_other_args, "SUCCESS", 0),
    "retry.automatic": simple(autoretry, "FAILURE"),
    "state.progress": simple(progress, "SUCCESS", "PROGRESS", {"done": 1}, "finished"),
    "state.progress_fail": simple(progress, "FAILURE", "PROGRESS", [1, 2], "fail"),
    "state.left": simple(progress, "WAITING FOR STOCK", "WAITING FOR STOCK", {"n": 1}, "ignore"),
    "state.left_null": simple(progress, "PAUSED", "PAUSED", None, "ignore"),
    "state.other": publish_other,
    "ignored": simple(ignore, "STARTED"),
    "ignored.result": called(echo, NO_ROW, ("nobody asks",), ignore_result=True),
    "rejected": simple(reject, REJECTED),
}

CASES = {
    **STOCK,
    "retry.backoff": simple(autoretry_with_backoff, "FAILURE"),
    "retry.in_handler": simple(retry_in_handler, "SUCCESS", "implicit"),
    "retry.in_handler_explicit": simple(retry_in_handler, "SUCCESS", "explicit"),
    "retry.in_handler_from": simple(retry_in_handler, "SUCCESS", "from"),
    "retry.waiting": simple(retry_waiting, "RETRY", "error"),
    "retry.waiting_no_reason": simple(retry_waiting, "RETRY", "none"),
    "retry.waiting_set": simple(retry_waiting, "RETRY", "set"),
    "retry.elsewhere": simple(retry_elsewhere, "SUCCESS"),
    "retry.not_raised": simple(retry_without_raising, "SUCCESS"),
    "retry.forbidden": simple(retry_forbidden, "FAILURE"),
    "retry.keywords": called(retry_with_keywords, "SUCCESS", (), {"first": 1}),
    "retry.by_hand": simple(raise_retry, "RETRY"),
    "retry.repr_given": called(
        retry_then, "SUCCESS", (1, "kept"), argsrepr="mine", kwargsrepr="{mine}"
    ),
    "state.often": simple(progress_often, "SUCCESS", 20),
    **{f"state.told_{name}": simple(tell, ENDS, name, "done") for name in OWN_STATES},
    **{f"state.left_{name}": simple(tell, SEEN, name, "ignore") for name in OWN_STATES},
    "state.backend": publish_to_backend,
    "state.caller": publish_from_caller,
    "state.caller_failure": publish_failure_from_caller,
    "rejected.once": simple(reject_once, "SUCCESS"),
    "untracked": simple(untracked, "SUCCESS", "done"),
    "untracked.failure": simple(untracked, "FAILURE", "fail"),
    "untracked.ignored": simple(untracked, NO_ROW, "ignore"),
    "late": simple(late, "SUCCESS"),
    "ignored.result": called(echo, IGNORED_BY_CALL, ("nobody asks",), ignore_result=True),
    "unwanted": simple(unwanted, NO_ROW),
    "unwanted.failure": simple(unwanted, NO_ROW, "fail"),
    "unwanted.asked_for": simple(unwanted, MAYBE, ignore_result=False),
    "unwanted.asked_for_failure": simple(unwanted, MAYBE, "fail", ignore_result=False),
    "unwanted.failure_wanted": simple(unwanted_but_errors, "FAILURE", "fail"),
    "unwanted.but_errors": simple(unwanted_but_errors, NO_ROW),
    "unwanted.progress": simple(unwanted_progress, "PROGRESS"),
    "unwanted.retry": simple(unwanted_retry, NO_ROW),
    "unwanted.retry_but_errors": simple(unwanted_retry_but_errors, "FAILURE"),
    "handled.start": handles("start", "raise"),
    "handled.start_tells": handles("start", "tell", "SUCCESS"),
    "handled.success": handles("success", "nothing", "SUCCESS"),
    "handled.success_spawns": handles("success", "spawn", "SUCCESS"),
    "handled.failure": handles("failure", "nothing", "FAILURE"),
    "handled.failure_raises": handles("failure", "raise"),
    "handled.failure_spawns": handles("failure", "spawn", "FAILURE"),
    "handled.retry_raises": handles("retry", "raise"),
    "handled.retry_tells": handles("retry", "tell", "SUCCESS"),
    "handled.return_spawns": handles("return", "spawn", "SUCCESS"),
}

#: A state after a final one, which django-celery-results lets overwrite it.
LATE = {
    "late.success_tells": handles("success", "tell"),
    "late.success_raises": handles("success", "raise"),
    "late.failure_tells": handles("failure", "tell"),
    "late.return_tells": handles("return", "tell"),
    "late.return_raises": handles("return", "raise"),
}
