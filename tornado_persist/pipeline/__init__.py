"""From an accepted batch to a committed flush: journal, buffer, flush, sink."""
