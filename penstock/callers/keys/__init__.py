"""API keys: who may call, and the file that lists them. Knows nothing of HTTP, and authentication never needs Redis.

A key's text is `<id>.<secret>`. The id is public: logs, metrics and Redis see it alone. The secret is 32 random bytes
and is stored as its SHA-256. A slow password hash protects secrets that people choose and that can be guessed; 256
random bits cannot be, so a plain hash is as strong and costs a microsecond per request instead of a tenth of a second.

`file` reads and writes the file, `change` is what `penstock keys` does to it, `ring` is the keys in force in a gateway.
"""

from penstock.callers.keys.change import create_key, retire_old_secret, revoke_key, rotate_key
from penstock.callers.keys.file import Key, exposure, hash_secret, read_keys, write_keys
from penstock.callers.keys.ring import CHECK_INTERVAL_S, KeyRing

__all__ = [
    "CHECK_INTERVAL_S",
    "Key",
    "KeyRing",
    "create_key",
    "exposure",
    "hash_secret",
    "read_keys",
    "retire_old_secret",
    "revoke_key",
    "rotate_key",
    "write_keys",
]
