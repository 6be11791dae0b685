"""The command line: one file a subcommand."""

INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses where SIGINT or SIGTERM ended a command: 128 and the signal's number, as shells count."""
