"""A durable write buffer over HTTP: batches in, large idempotent upserts out.

A batch travels ``web`` -> ``pipeline`` (``records`` reads it, the ``journal`` keeps it, the buffer merges it, the
flusher writes it) -> ``sinks``; ``service`` puts the parts together and ``cli`` is the ``persistd`` command.
"""

from pkgutil import extend_path

# tornado_persist.client is in a distribution of its own, which has no file here: by itself its tornado_persist is a
# namespace. Beside the service in one directory it is found anyway; in another one, as with editable installs, by this.
__path__ = extend_path(__path__, __name__)
__version__ = "1.0.0"
