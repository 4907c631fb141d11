"""Sends the demo's tasks, as a Django view would."""

import json

from celery import chain, chord, group
from celery.utils import uuid
from django.core.management.base import BaseCommand

from shop.tasks import OutOfStock, add, charge_card, import_catalogue, price, reserve, total


class Command(BaseCommand):
    help = "Send one task of each kind and print their ids, each with its expected outcome."

    def handle(self, *args, **options):
        sent = {}

        def expect(name, task_id, result, status="SUCCESS"):
            sent[name] = {"task_id": task_id, "status": status, "result": repr(result)}

        progress = import_catalogue.delay(4)
        expect("custom state", progress.id, {"done": 100, "of": 100})
        priced = price.delay("celeriac", quantity=3)
        expect("success", priced.id, {"article": "celeriac", "quantity": 3, "total": "29.97"})
        expect("failure", reserve.delay("celeriac").id, OutOfStock("celeriac", 0), "FAILURE")
        expect("retry", charge_card.delay("4242").id, "charged 4242")

        ids = [uuid() for _ in range(3)]
        steps = [add.s(1, 2), add.s(4), add.s(8)]
        chain(*(step.set(task_id=task_id) for step, task_id in zip(steps, ids))).apply_async()
        for number, (task_id, result) in enumerate(zip(ids, (3, 7, 15)), 1):
            expect(f"chain {number}", task_id, result)

        ids = [uuid() for _ in range(3)]
        group(add.s(n, n).set(task_id=task_id) for n, task_id in enumerate(ids)).apply_async()
        for number, task_id in enumerate(ids):
            expect(f"group {number + 1}", task_id, number + number)

        ids = [uuid() for _ in range(3)]
        header = [add.s(n, n).set(task_id=task_id) for n, task_id in enumerate(ids[1:], 1)]
        chord(header)(total.s().set(task_id=ids[0]))
        expect("chord", ids[0], 6)
        for number, task_id in enumerate(ids[1:], 1):
            expect(f"chord {number}", task_id, number + number)

        self.stdout.write(json.dumps(sent))
