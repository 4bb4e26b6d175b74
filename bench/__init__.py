"""Measures the service beside a handwritten one, and beside the limits of its sinks; see README.rst."""
