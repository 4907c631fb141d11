"""`python manage.py celeriac run`: runs the daemon with the project's broker and database."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from celery import current_app
from celery.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from celeriac.program import SettingsError, environment, execute


class Command(BaseCommand):
    """Passes all arguments to the program, except Django's own options."""

    help = (
        "Runs the program `celeriac` with the broker and the database of this project; see "
        "`manage.py celeriac --help`. --django-database ALIAS names one of DATABASES."
    )

    def run_from_argv(self, argv: list[str]) -> None:
        # Django's own parser would refuse the options that it does not know.
        try:
            self.handle(arguments=argv[2:])
        except CommandError as error:
            self.stderr.write(f"CommandError: {error}")
            sys.exit(error.returncode)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the program")

    def handle(self, *_: Any, arguments: list[str], **__: Any) -> None:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--django-database", metavar="ALIAS")
        # `manage.py` has already applied these two (ManagementUtility.execute).
        parser.add_argument("--settings")
        parser.add_argument("--pythonpath")
        ours, rest = parser.parse_known_args(arguments)
        try:
            if {"-h", "--help", "-V", "--version", "help"} & set(rest):
                execute(rest, os.environ)
            execute(rest, environment(current_app._get_current_object(), ours.django_database))
        except (ImproperlyConfigured, SettingsError) as error:
            raise CommandError(str(error)) from error
