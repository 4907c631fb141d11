"""Makes the user of the admin, once; `createsuperuser` fails where there is one."""

import os

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Make a superuser of ADMIN_USER and ADMIN_PASSWORD, unless there is one of that name."

    def handle(self, *args, **options):
        users, name = get_user_model().objects, os.environ["ADMIN_USER"]
        if not users.filter(username=name).exists():
            users.create_superuser(name, password=os.environ["ADMIN_PASSWORD"])
