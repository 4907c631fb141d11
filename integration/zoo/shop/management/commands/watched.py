"""Publishes the tasks of `shop/watched.py`."""

import json

from django.core.management.base import BaseCommand

from shop import watched


class Command(BaseCommand):
    help = "Publish tasks and print their ids, each with the status that it must end with."

    def add_arguments(self, parser):
        parser.add_argument("run", help="a name from which all task ids follow")
        parser.add_argument("--hold", metavar="FILE", help="only those that wait for this file")

    def handle(self, *args, **options):
        if options["hold"]:
            published = watched.publish_held(options["run"], options["hold"])
        else:
            published = watched.publish_all(options["run"])
        self.stdout.write(json.dumps(published))
