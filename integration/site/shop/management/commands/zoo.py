"""Publishes the zoo, as a Django view or shell would publish tasks."""

import json

from django.core.management.base import BaseCommand

from shop.zoo import publish_all


class Command(BaseCommand):
    help = "Publish one task of every kind and print the task ids of each with their last status."

    def add_arguments(self, parser):
        parser.add_argument("run", help="a name from which all task ids follow")

    def handle(self, *args, **options):
        self.stdout.write(json.dumps(publish_all(options["run"])))
