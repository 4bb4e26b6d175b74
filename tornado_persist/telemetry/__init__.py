"""What the service says of itself: log, metrics, and the state that systemd sees."""
