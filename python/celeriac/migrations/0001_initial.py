from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies: list[tuple[str, str]] = []

    operations = [
        migrations.CreateModel(
            name="Chord",
            fields=[
                (
                    "group_id",
                    models.CharField(
                        help_text="The id of the group that is the header.",
                        max_length=255,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "unlock_id",
                    models.CharField(
                        help_text="The id of the task that calls the body.", max_length=255
                    ),
                ),
                (
                    "message",
                    models.TextField(
                        help_text="The message for that task, as a line of a capture."
                    ),
                ),
                (
                    "applied_at",
                    models.DateTimeField(
                        help_text=(
                            "When the chord was applied, less a tolerance for clocks that differ. "
                            "Results from before belong to an earlier run."
                        )
                    ),
                ),
                (
                    "expires_at",
                    models.DateTimeField(
                        db_index=True, help_text="From when on the row may be deleted."
                    ),
                ),
                (
                    "unlock_at",
                    models.DateTimeField(
                        db_index=True,
                        help_text=(
                            "When the message is to be sent next. Null while members are awaited."
                        ),
                        null=True,
                    ),
                ),
                (
                    "unlocks",
                    models.IntegerField(default=0, help_text="How often the message was sent."),
                ),
                (
                    "problem",
                    models.TextField(help_text="Why the message could not be sent.", null=True),
                ),
                (
                    "done_at",
                    models.DateTimeField(
                        help_text="When nothing was left to be done for the chord.", null=True
                    ),
                ),
            ],
            options={"db_table": "celeriac_chord"},
        ),
        migrations.CreateModel(
            name="ChordMember",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("task_id", models.CharField(max_length=255)),
                (
                    "group_id",
                    models.CharField(
                        help_text=(
                            "The chord's `group_id`. Empty for a value that came before its chord."
                        ),
                        max_length=255,
                    ),
                ),
                (
                    "is_final",
                    models.BooleanField(default=False, help_text="Whether the task has ended."),
                ),
                (
                    "value",
                    models.TextField(
                        help_text="The result as JSON, of a task whose result is not stored.",
                        null=True,
                    ),
                ),
                ("created_at", models.DateTimeField(help_text="When the row was made.")),
            ],
            options={
                "db_table": "celeriac_chordmember",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("task_id", "group_id"), name="celeriac_chordmember_task_group"
                    )
                ],
                "indexes": [
                    models.Index(
                        fields=["group_id", "is_final"], name="celeriac_chordmember_group"
                    )
                ],
            },
        ),
    ]
