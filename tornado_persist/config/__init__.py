"""The settings, and the only code that reads the configuration file and variables."""
