"""The way of accepted rows: journal, buffer, flush, sink."""
