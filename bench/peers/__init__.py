"""Other services for comparison."""
