"""Rows from files on their way into a running service."""
