"""The `holdover` command line: runs wherever Python runs and imports nothing of the daemon."""
