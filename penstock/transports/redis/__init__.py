"""The transport over Redis (>= 7.0) or Valkey. `docs/protocol.md` describes every key, field, script and frame.

Every key, who writes it, and how long it lives: `keys.py`. What each script promises: the head of each `lua/*.lua`.
The only package that knows Redis; it knows nothing of HTTP, batching or engines.
"""

from penstock.transports.redis.transport import RedisTransport

__all__ = ["RedisTransport"]
