"""The settings of the example: ``PERSIST_URL`` is the one that the client needs."""

import os

PERSIST_URL = os.environ.get("PERSIST_URL", "http://localhost:8001")

SECRET_KEY = os.environ.get("SECRET_KEY", "of the example alone")
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["translations"]
ROOT_URLCONF = "translations.urls"
WSGI_APPLICATION = "wsgi.application"
