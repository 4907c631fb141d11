"""Creates the admin's user if it does not exist; `createsuperuser` would fail if it does."""

import os

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Create a superuser from ADMIN_USER and ADMIN_PASSWORD if that user does not exist."

    def handle(self, *args, **options):
        users, name = get_user_model().objects, os.environ["ADMIN_USER"]
        if not users.filter(username=name).exists():
            users.create_superuser(name, password=os.environ["ADMIN_PASSWORD"])
