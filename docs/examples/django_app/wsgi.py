"""A Django project that reports its work: ``PERSIST_URL=http://localhost:8001 gunicorn --preload wsgi``."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_wsgi_application()
