"""A virtual host, a database with Django's tables, and the daemon between them."""

from __future__ import annotations

from dataclasses import dataclass

from harness import results
from harness.broker import DEAD, RESULTS, Broker
from harness.daemon import Daemon
from harness.database import Database

STANDARD_SECONDS = 90


@dataclass
class Pipeline:
    broker: Broker
    database: Database
    daemon: Daemon

    @property
    def engine(self) -> str:
        return self.database.engine

    def wait_for_rows(
        self, wanted: dict[str, str], timeout_seconds: float = STANDARD_SECONDS
    ) -> None:
        """Waits until each task id has its expected status."""

        def missing() -> dict[str, str]:
            statuses = self.database.statuses()
            return {id: status for id, status in wanted.items() if statuses.get(id) != status}

        try:
            self.daemon.wait_while_alive(lambda: not missing(), "expected rows", timeout_seconds)
        except Exception as error:
            lacking = missing()
            some = dict(list(lacking.items())[:10])
            error.add_note(f"{len(lacking)} of {len(wanted)} rows are missing or wrong: {some}")
            raise

    def wait_until_handled(self) -> None:
        """Waits until all results published so far are handled.

        A lane stores results in the order of arrival, so one that is published now is stored last.
        The dead letters of a batch are published after its rows are stored, and before the rows of
        the next batch.
        """
        for _ in range(2):
            last = results.new_id()
            self.broker.publish(results.result(last))
            self.wait_for_rows({last: "SUCCESS"})

    def stop_and_check_queues(self) -> None:
        """Stops the daemon; messages that it has not acknowledged would be back in the queue."""
        exit_code = self.daemon.stop()
        assert exit_code == 0, f"the daemon ended with {exit_code}:\n{self.daemon.last_words()}"
        assert self.broker.depth(RESULTS) == 0
        assert self.broker.depth(DEAD) == 0
