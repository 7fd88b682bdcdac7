"""Holdover's daemon: keeps agent sessions alive while everything around them is replaced.

The daemon owns nothing that it can lose; ARCHITECTURE.md tells who holds what. This package
imports nothing here, so that the keeper (standard library only) starts in a few megabytes.
"""

__version__ = "0.2.0"
