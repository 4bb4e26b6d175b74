"""One client for each process. A command of ``manage.py`` that sends nothing starts no thread and no connection."""

from django.apps import AppConfig
from django.conf import settings

from tornado_persist.client import Client


class Translations(AppConfig):
    name = "translations"
    persist: Client

    def ready(self) -> None:
        self.persist = Client(settings.PERSIST_URL)
