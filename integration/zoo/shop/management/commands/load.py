"""Publishes thousands of tasks."""

import json

from django.core.management.base import BaseCommand

from shop import load


class Command(BaseCommand):
    help = "Publish this many tasks and print their ids."

    def add_arguments(self, parser):
        parser.add_argument("tasks", type=int)

    def handle(self, *args, **options):
        self.stdout.write(json.dumps(load.publish(options["tasks"])))
