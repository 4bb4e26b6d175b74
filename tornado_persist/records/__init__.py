"""What a session and a task are: types, limits, rows, times, and the way from bytes to rows."""
