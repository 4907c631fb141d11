"""Shows Celeriac at work, from nothing: `make demo`.

A real Django project on a new SQLite file, a Celery worker on `celeriac://`, a RabbitMQ, and
`manage.py celeriac run` between them. A mix of tasks is sent; at the end every row as Django's ORM sees it
stands next to what Celery's `AsyncResult` says, and the two have to agree. Everything that is
started is stopped again. Standard library only: its virtual environment comes with the run.

    python -m demo.demo [CELERIAC]      (or CELERIAC_BIN, or what Cargo has built)
"""

from __future__ import annotations

import ast
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import environments
from harness.daemon import binary
from harness.processes import Failure, end_on_terminate
from harness.project import Project
from harness.services import say, service

#: How long the tasks may take until their rows are there.
DEADLINE_SECONDS = 60

COLUMNS = {"task": 38, "status": 8, "result (ORM)": 44, "AsyncResult": 40}


def step(text: str) -> None:
    print(f"• {text}", flush=True)


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def line(*cells: str) -> str:
    widths = COLUMNS.values()
    return "  ".join(cut(cell, width).ljust(width) for cell, width in zip(cells, widths)).rstrip()


def call(task: str, row: dict[str, Any]) -> str:
    """The task as it was called: the row has its name, and its arguments as Python shows them."""
    name = (row["task_name"] or task).rpartition(".")[2]
    args = ast.literal_eval(json.loads(row["task_args"] or '"()"'))
    kwargs = ast.literal_eval(json.loads(row["task_kwargs"] or '"{}"'))
    arguments = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
    return f"{task}: {name}({', '.join(arguments)})"


def disagreements(task: str, wanted: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Where a row, AsyncResult and what the task is known to do differ."""
    row, seen = stored["row"], stored["async_result"]
    if "error" in seen:
        return [f"{task}: AsyncResult cannot read its row: {seen['error']}"]
    found = {
        "status": (row["status"], seen["state"], wanted["status"]),
        "result": (seen["result"], wanted["result"]),
        "traceback": (row["traceback"], seen["traceback"]),
    }
    return [
        f"{task}: its {what} differs: {' / '.join(map(repr, values))}"
        for what, values in found.items()
        if any(value != values[0] for value in values)
    ]


def show(tasks: dict[str, dict[str, Any]], rows: dict[str, Any]) -> list[str]:
    """Prints the table and returns what is wrong with it."""
    problems = []
    print()
    print(line(*COLUMNS))
    print(line(*("─" * width for width in COLUMNS.values())))
    for task, wanted in tasks.items():
        stored = rows.get(wanted["task_id"])
        if stored is None:
            problems.append(f"{task}: there is no row")
            continue
        row, seen = stored["row"], stored["async_result"]
        print(line(call(task, row), row["status"], row["result"], seen.get("result", "unreadable")))
        problems += disagreements(task, wanted, stored)
    print()
    return problems


def run(celeriac: Path) -> list[str]:
    step("a virtual environment with Celery 5.7, Django 5.2 and django-celery-results 2.6")
    python = environments.python("celery-5.7")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celeriac-demo-")))
        step("RabbitMQ: one that answers, or else a private one")
        broker = stack.enter_context(service("rabbitmq")).create()
        database = f"sqlite:///{folder / 'db.sqlite3'}"
        settings = {"RESULT_BACKEND": "celeriac://", "CELERIAC_BIN": str(celeriac)}
        project = Project(python, database, broker, settings)
        step(f"python manage.py migrate   ({database})")
        project.migrate()
        step("python manage.py celeriac run")
        daemon = project.daemon(folder / "celeriac.log")
        stack.callback(daemon.kill)
        daemon.start()
        daemon.wait_for("consuming")
        step("celery -A shop worker --concurrency 2")
        worker = project.worker(folder / "worker.log")
        stack.callback(worker.kill)
        worker.start()
        worker.wait_for("ready.", 60)
        step("sending tasks: success, failure, retry, custom state, chain, group, chord")
        tasks = json.loads(project.manage("send_demo"))
        halfway = tasks["custom state"]["task_id"]
        began = time.monotonic()

        def statuses() -> dict[str, str]:
            rows = project.rows()
            return {task_id: stored["row"]["status"] for task_id, stored in rows.items()}

        daemon.wait_while_alive(
            lambda: statuses().get(halfway) == "PROGRESS", "row in a custom state", DEADLINE_SECONDS
        )
        seen = project.rows()[halfway]["async_result"]
        step(f"seen while it is running: {seen['state']} {seen['result']}")
        wanted = {task["task_id"]: task["status"] for task in tasks.values()}
        try:
            daemon.wait_while_alive(
                lambda: wanted.items() <= statuses().items(), "row for every task", DEADLINE_SECONDS
            )
        except Failure as failure:
            say(str(failure))
        else:
            step(f"all rows are there after {time.monotonic() - began:.1f} s")
        problems = show(tasks, project.rows())
        for process in (worker, daemon):
            exit_code = process.stop()
            if exit_code != 0:
                problems.append(f"{process.name} ended with {exit_code}:\n{process.last_words()}")
        step("stopped everything that was started")
        return problems


def main() -> int:
    end_on_terminate()
    try:
        problems = run(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else binary())
    except Failure as failure:
        problems = [str(failure)]
    except KeyboardInterrupt:
        return 130
    if problems:
        say("the demo failed:\n" + "\n".join(problems))
        return 1
    print("Every row agrees with what AsyncResult says.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
