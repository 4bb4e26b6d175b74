"""A durable write buffer over HTTP: batches in, large idempotent upserts out.

A batch travels ``web`` -> ``ingest`` (``models``, ``buffer``) -> ``flusher`` -> ``sinks``; ``service`` puts the parts
together and ``cli`` is the ``persistd`` command.
"""

__version__ = "1.0.0"
