"""Any server that speaks OpenAI's API as a backend: `NAME=openai:url=http://…`; docs/backends.md has every option.

`engines` says who can do what, `request` and `chunks` are the two directions of the protocol, `trouble` says what a
failure means, `breaker`, `replicas` and `trip` decide where a job goes: all pure. `call` and `health` do the I/O, and
`backend` puts them together.
"""

from penstock.backends.openai.backend import OpenAIBackend

__all__ = ["OpenAIBackend"]
