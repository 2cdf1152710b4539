"""The command `penstock`. Reads flags, calls what does the work, prints; knows nothing else."""

from penstock.cli.app import app, main

__all__ = ["app", "main"]
