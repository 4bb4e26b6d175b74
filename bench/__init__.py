"""The service measured beside what people write by hand, and beside what its sinks can take; see README.rst."""
