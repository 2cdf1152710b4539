"""Any server that speaks OpenAI's API as a backend: `NAME=openai:url=http://…`, or a table `[[models.NAME.upstreams]]`.

docs/backends.md has every option.

`engines` lists what each engine can do, `request` and `chunks` are the two directions of the protocol, `failures` names
what a failure means, `breaker`, `replicas` and `retries` decide where a job goes: all pure. `http` and `health` do the
I/O, and `backend` puts them together.
"""

from penstock.backends.openai.backend import OpenAIBackend
from penstock.backends.openai.options import Upstream

__all__ = ["OpenAIBackend", "Upstream"]
