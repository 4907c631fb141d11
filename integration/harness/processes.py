"""Starts, watches and ends child processes. Standard library only.

Each child runs in its own session, so that Ctrl-C reaches only us and we can end the children in
the right order, and so that a worker can be killed together with its pool.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Failure(Exception):
    """An error whose message is shown to the user without a traceback."""


def wait_until(
    condition: Callable[[], object],
    what: str,
    timeout_seconds: float,
    interval_seconds: float = 0.05,
) -> None:
    """Polls `condition` until it is true; `what` is named in the error if it never is."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"waited {timeout_seconds:.0f} s in vain for {what}")
        time.sleep(interval_seconds)


def end_on_terminate() -> None:
    """Makes SIGTERM unwind the stack as Ctrl-C does, so that everything is cleaned up."""

    def unwind(_signal_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, unwind)


def let_children_have_signals() -> None:
    """Gives children the default action of signals that this process was started to ignore.

    A process under `nohup` ignores SIGHUP, and one in the background of a script SIGINT and
    SIGQUIT, and so do their children. Handlers are not inherited, so these signals get one that
    does nothing.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)


def descendants(pid: int) -> list[int]:
    """The running descendants of `pid`, including those in other sessions."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def is_running(pid: int) -> bool:
    """Whether the process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Process:
    """A child process whose output goes to a log file, for which tests can wait."""

    #: After how many seconds a process that still runs gets the signal to stop again.
    SECOND_SIGNAL_SECONDS: float | None = None

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.env = dict(os.environ if env is None else env)
        self.cwd = cwd
        self.user = user
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} was never started"
        return self._child.pid

    def start(self) -> None:
        assert not self.is_alive(), f"{self.name} is already running"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        identity = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                self.command,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **identity,
            )

    def is_alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def output(self) -> str:
        """The output since the last start."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def wait_for(self, text: str, timeout_seconds: float = 120) -> None:
        """Waits until `text` is logged; if it never is, the error shows the log."""
        self.wait_while_alive(lambda: text in self.output(), f"`{text}`", timeout_seconds)

    def wait_while_alive(
        self, condition: Callable[[], object], what: str, timeout_seconds: float
    ) -> None:
        """Waits until `condition` is true, and fails as soon as the process has ended."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            dead = not self.is_alive()
            if dead or time.monotonic() > deadline:
                reason = f"ended with {self.exit_code}" if dead else f"{timeout_seconds:.0f} s over"
                raise Failure(
                    f"{self.name}: no {what} ({reason}); its log ends with:\n{self.last_words()}"
                )
            time.sleep(0.05)

    def last_words(self, lines: int = 25) -> str:
        return "\n".join(self.output().splitlines()[-lines:])

    def terminate(self, signal_number: int = signal.SIGTERM) -> None:
        """Sends a signal without waiting for the process to end."""
        if self.is_alive():
            os.kill(self.pid, signal_number)

    def stop(self, timeout_seconds: float = 60, signal_number: int = signal.SIGTERM) -> int | None:
        """Asks the process to end, kills it if it does not, and returns its exit code."""
        with self._lock:
            if self._child is None:
                return None
            below = descendants(self.pid)
            for seconds in filter(None, (self.SECOND_SIGNAL_SECONDS, timeout_seconds)):
                self.terminate(signal_number)
                try:
                    self._child.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
                self._kill(below)
                return self._child.returncode
            self._kill(below)
            raise Failure(
                f"{self.name} did not end within {timeout_seconds:.0f} s of the signal; "
                f"its log ends with:\n{self.last_words()}"
            )

    def kill(self) -> None:
        """Kills the process and its descendants."""
        with self._lock:
            if self._child is not None and self.is_alive():
                self._kill([self.pid, *descendants(self.pid)])
                self._child.wait()

    @staticmethod
    def _kill(pids: list[int]) -> None:
        for pid in pids:
            if is_running(pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        wait_until(lambda: not any(is_running(pid) for pid in pids), "killed processes to go", 10)
