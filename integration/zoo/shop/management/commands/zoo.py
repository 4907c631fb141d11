"""Publishes the zoo, as a Django view or shell would publish tasks."""

import json

from celery import current_app
from django.core.management.base import BaseCommand

from shop.zoo import CASES, SETS, publish_all


class Command(BaseCommand):
    help = "Publish one task of every kind and print the task ids of each with their last status."

    def add_arguments(self, parser):
        parser.add_argument("run", help="a name from which all task ids follow")
        parser.add_argument("--stock", action="store_true", help="only what `rpc://` can do")
        parser.add_argument("--brief", action="store_true", help="what differs by serializer")
        parser.add_argument("--golden", action="store_true", help="what is kept as a capture")
        parser.add_argument("--few", action="store_true", help="what differs by version")
        parser.add_argument("--signed", action="store_true", help="what is kept with signatures")

    def handle(self, *args, **options):
        # Without confirms RabbitMQ can drop what a process published just before it ended.
        current_app.conf.broker_transport_options = {"confirm_publish": True}
        cases = next((SETS[name] for name in SETS if options.get(name)), CASES)
        self.stdout.write(json.dumps(publish_all(options["run"], cases)))
