"""The other contents of a message: `meta`, periodic tasks, names, stamps, headers."""

import zlib

import celery
from celery import Task, current_app, shared_task
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule

from .cases import (
    ENDS,
    MAYBE,
    SEEN,
    SOON,
    break_down,
    called,
    child_id_of,
    echo,
    in_an_hour,
    send_body,
    simple,
    spawning,
)

METAS = {
    "plain": lambda: {"customer": "c-1", "steps": [1, 2.5, None, True]},
    "unicode": lambda: {"crème": "brûlée 🥬"},
    "empty": dict,
    "children": lambda: {"children": ["overridden"], "other": 1},
    "columns": lambda: {"status": "FAILURE", "result": "no", "date_done": "now", "task_id": "x"},
    "number": lambda: 7,
    "none": lambda: None,
    "pairs": lambda: [("a", 1)],
    "bytes": lambda: {"raw": b"\xff\x00"},
    "object": lambda: {"object": object},
    "int_keys": lambda: {1: "one"},
    "large": lambda: {f"key {number}": "x" * 50 for number in range(500)},
    "surrogate": lambda: {"half": "\ud800", "nul": "\0"},
}


@shared_task(bind=True)
def set_meta(self, name, end):
    self.request.meta = METAS[name]()
    if end == "fail":
        raise ValueError("with meta")
    if end == "retry" and not self.request.retries:
        raise self.retry(countdown=SOON)
    if end == "progress":
        self.update_state(state="PROGRESS", meta={"not": "that meta"})
    return end


@shared_task(bind=True)
def set_meta_and_spawn(self):
    self.request.meta = {"before": "the children"}
    echo.apply_async(("child",), task_id=child_id_of(self.request.id, "child"))


class Recorder(Task):
    """A task class that has a state."""

    name = "shop.recorder"
    abstract = False
    count = 0

    def run(self, text):
        self.count += 1
        return f"{type(self).__name__}: {text}"


class Based(Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        return ["called", super().__call__(*args, **kwargs)]


current_app.register_task(Recorder())


@shared_task(base=Based)
def based(text):
    return text


@shared_task(name="aufgaben.crème 🥬")
def named_in_unicode():
    return "unicode"


@shared_task(name="n" * 255)
def named_at_length():
    return "as long as the column"


@shared_task(bind=True)
def look_at_request(self):
    request = self.request
    return {
        "id": request.id,
        "task": request.task,
        "retries": request.retries,
        "argsrepr": request.argsrepr,
        "hostname": request.hostname,
        "ignore_result": getattr(request, "ignore_result", None),
    }


@shared_task(result_serializer="pickle", serializer="json")
def give_with_options():
    """These options belong to the task; the backend uses its own serializer."""
    return "options"


def with_headers(**headers):
    return called(echo, "SUCCESS", ("headers",), headers=headers)


def publish_from_beat(task_id):
    """Uses the scheduler of `celery beat`, with the header of django-celery-beat."""
    entry = ScheduleEntry(
        name="every-morning",
        task=echo.name,
        schedule=schedule(60),
        args=[1, "two"],
        kwargs={"three": 3},
        options={"task_id": task_id, "headers": {"periodic_task_name": "every morning"}},
        app=current_app,
    )
    Scheduler(app=current_app, lazy=True).apply_async(entry, advance=False)
    return {task_id: "SUCCESS"}


def publish_from_plain_beat(task_id):
    entry = ScheduleEntry(
        name="every-evening",
        task=echo.name,
        schedule=schedule(60),
        options={"task_id": task_id},
        app=current_app,
    )
    Scheduler(app=current_app, lazy=True).apply_async(entry, advance=False)
    return {task_id: "SUCCESS"}


def publish_by_name(task_id):
    current_app.send_task(echo.name, ("by name",), task_id=task_id)
    return {task_id: "SUCCESS"}


def publish_unregistered(task_id):
    current_app.send_task("shop.zoo.nowhere", ("lost",), task_id=task_id)
    return {task_id: "FAILURE"}


def publish_unregistered_in_full(task_id):
    current_app.send_task(
        "nirgends.crème",
        ("lost", {"deep": [1]}),
        {"k": "v"},
        task_id=task_id,
        headers={"periodic_task_name": "never", "meta": {"kept": False}},
        ignore_result=False,
    )
    return {task_id: "FAILURE"}


def publish_stamped(task_id):
    signature = echo.s("stamped")
    signature.stamp(customer="c-1")
    signature.apply_async(task_id=task_id)
    return {task_id: "SUCCESS"}


def publish_stamped_much(task_id):
    """Stamps of several types, some with the names of result members."""
    signature = echo.s("stamped")
    signature.stamp(customer=["c-1", "c-2"], status="stamped", result=7, meta={"a": 1}, worker="w")
    signature.apply_async(task_id=task_id)
    return {task_id: ENDS}


def publish_with_number_for_id(task_id):
    number = zlib.crc32(task_id.encode())
    body = [["by number"], {}, {}]
    headers = {"lang": "js", "task": echo.name, "id": number, "root_id": number}
    send_body(str(number), body, headers)
    return {str(number): "SUCCESS"}


def publish_with_id(make_id):
    def publish(task_id):
        other_id = make_id(task_id)
        echo.apply_async(("odd id",), task_id=other_id)
        return {other_id: "SUCCESS"}

    return publish


def publish_again(first, second, status):
    """Two tasks with the same id. They are linked, so they run one after the other."""

    def publish(task_id):
        (task, *args), (next_task, *next_args) = first, second
        following = next_task.si(*next_args).set(task_id=task_id)
        task.apply_async(args, task_id=task_id, link=following)
        return {task_id: status}

    return publish


STOCK = {
    "by_name": publish_by_name,
    "unregistered": publish_unregistered,
}
if celery.VERSION >= (5, 3):
    STOCK["stamped"] = publish_stamped

CASES = {
    **STOCK,
    **{f"meta.{name}": simple(set_meta, ENDS, name, "done") for name in METAS},
    "meta.fail": simple(set_meta, "FAILURE", "plain", "fail"),
    "meta.retry": simple(set_meta, "SUCCESS", "plain", "retry"),
    "meta.progress": simple(set_meta, "SUCCESS", "plain", "progress"),
    "meta.object_fail": simple(set_meta, ENDS, "object", "fail"),
    "meta.children_too": spawning(set_meta_and_spawn, ("child",)),
    "meta.header": with_headers(meta={"from": "a header", "n": [1, None]}),
    "meta.header_children": with_headers(meta={"children": "overridden"}),
    "meta.header_empty": with_headers(meta={}),
    "meta.header_text": called(echo, MAYBE, ("headers",), headers={"meta": "no mapping"}),
    "meta.header_none": called(echo, MAYBE, ("headers",), headers={"meta": None}),
    "meta.header_and_code": called(
        set_meta, "SUCCESS", ("plain", "done"), headers={"meta": {"from": "a header"}}
    ),
    "meta.header_fail": called(set_meta, "FAILURE", ("empty", "fail"), headers={"meta": {"a": 1}}),
    "meta.header_revoked": called(
        echo, "REVOKED", ("late",), headers={"meta": {"a": 1}}, countdown=4, expires=3
    ),
    "periodic": with_headers(periodic_task_name="every morning"),
    "periodic.unicode": with_headers(periodic_task_name="jeden Morgen um ½ 🥬"),
    "periodic.empty": with_headers(periodic_task_name=""),
    "periodic.none": with_headers(periodic_task_name=None),
    "periodic.at_length": with_headers(periodic_task_name="p" * 255),
    "periodic.number": with_headers(periodic_task_name=7),
    "periodic.true": with_headers(periodic_task_name=True),
    "periodic.beat": publish_from_beat,
    "periodic.beat_plain": publish_from_plain_beat,
    "periodic.retried": called(
        set_meta, "SUCCESS", ("empty", "retry"), headers={"periodic_task_name": "again"}
    ),
    "periodic.failed": called(
        set_meta, "FAILURE", ("empty", "fail"), headers={"periodic_task_name": "fails"}
    ),
    "headers.own": with_headers(customer="c-1", number=7, nested={"a": [1]}),
    "headers.like_columns": with_headers(
        worker="header", task_name="header", traceback="header", result="header", status="header"
    ),
    "headers.hostname": with_headers(hostname="elsewhere"),
    "name.class": called(current_app.tasks[Recorder.name], "SUCCESS", ("recorded",)),
    "name.base": simple(based, "SUCCESS", "text"),
    "name.unicode": simple(named_in_unicode, "SUCCESS"),
    "name.at_length": simple(named_at_length, "SUCCESS"),
    "name.shadowed": called(echo, "SUCCESS", ("shadowed",), shadow="in the shadow"),
    "name.request": simple(look_at_request, "SUCCESS"),
    "name.options": simple(give_with_options, "SUCCESS"),
    "id.number": publish_with_number_for_id,
    "id.text": publish_with_id(lambda task_id: f"Bestellung #{task_id[:8]}: crème 🥬 / % \\ \" '"),
    "id.at_length": publish_with_id(lambda task_id: (task_id + "-" * 255)[:255]),
    "id.upper": publish_with_id(lambda task_id: task_id.upper()),
    "option.priority": called(echo, "SUCCESS", ("p",), priority=5),
    "option.eta": called(echo, "SUCCESS", ("soon",), countdown=0.3),
    "option.expires_later": called(echo, "SUCCESS", ("in time",), expires=in_an_hour()),
    "option.queue": called(echo, "SUCCESS", ("elsewhere",), queue="other"),
    "option.limits": called(echo, "SUCCESS", ("limited",), time_limit=20, soft_time_limit=10),
    "option.keep": called(echo, "SUCCESS", ("kept",), ignore_result=False),
    "unregistered.in_full": publish_unregistered_in_full,
    "again.success": publish_again((set_meta, "plain", "done"), (echo, "again"), "SUCCESS"),
}
#: A task that has succeeded fails when it runs again.
LATE = {"late.again_failure": publish_again((echo, "first"), (break_down,), SEEN)}
if celery.VERSION >= (5, 3):
    CASES["stamped.much"] = publish_stamped_much
