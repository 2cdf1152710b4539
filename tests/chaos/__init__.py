"""The chaos driver: `python -m tests.chaos`."""
