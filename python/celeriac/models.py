"""The tables in which chords wait for their members. Only Django imports this module.

They have no foreign keys, because rows are written in any order. `migrations/celeriac/` in the
repository has the SQL with which `celeriac migrate` creates them.
"""

from __future__ import annotations

from django.db import models


class Chord(models.Model):
    """A chord whose body is to be called when every member of its header has ended.

    The body is called by Celery's task `celery.chord_unlock`; `message` is the message for it.
    """

    group_id = models.CharField(
        max_length=255, primary_key=True, help_text="The id of the group that is the header."
    )
    unlock_id = models.CharField(
        max_length=255, help_text="The id of the task that calls the body."
    )
    message = models.TextField(
        help_text="The message for that task, as a line of a capture."
    )
    applied_at = models.DateTimeField(
        help_text="When the chord was applied, less a tolerance for clocks that differ. Results "
        "from before belong to an earlier run."
    )
    expires_at = models.DateTimeField(
        db_index=True, help_text="From when on the row may be deleted."
    )
    unlock_at = models.DateTimeField(
        null=True,
        db_index=True,
        help_text="When the message is to be sent next. Null while members are awaited.",
    )
    unlocks = models.IntegerField(default=0, help_text="How often the message was sent.")
    problem = models.TextField(null=True, help_text="Why the message could not be sent.")
    done_at = models.DateTimeField(
        null=True, help_text="When nothing was left to be done for the chord."
    )

    class Meta:
        db_table = "celeriac_chord"

    def __str__(self) -> str:
        return self.group_id


class ChordMember(models.Model):
    """A task in the header of a chord."""

    id = models.BigAutoField(primary_key=True)
    task_id = models.CharField(max_length=255)
    group_id = models.CharField(
        max_length=255,
        help_text="The chord's `group_id`. Empty for a value that came before its chord.",
    )
    is_final = models.BooleanField(default=False, help_text="Whether the task has ended.")
    value = models.TextField(
        null=True, help_text="The result as JSON, of a task whose result is not stored."
    )
    created_at = models.DateTimeField(help_text="When the row was made.")

    class Meta:
        db_table = "celeriac_chordmember"
        constraints = [
            models.UniqueConstraint(
                fields=["task_id", "group_id"], name="celeriac_chordmember_task_group"
            )
        ]
        indexes = [
            models.Index(fields=["group_id", "is_final"], name="celeriac_chordmember_group")
        ]

    def __str__(self) -> str:
        return self.task_id
