"""The settings of the shop, with the demo's task and the static files of Django's admin."""

from shop.settings import *  # noqa: F403
from shop.settings import INSTALLED_APPS as APPS

INSTALLED_APPS = [*APPS, "django.contrib.staticfiles", "demo"]
STATIC_URL = "/static/"
