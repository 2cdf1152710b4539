"""Does a worker, in any language, keep the rules of docs/protocol.md? `python -m tests.conformance --worker "command"`.

Speaks to the worker by Redis alone. The command must start one worker that

* finds Redis at `PENSTOCK_REDIS_URL` and serves the model `mock` of the default pool;
* answers a prompt with as many tokens as `max_tokens` says, the same ones each time, some 10 to 40 ms apart;
* can hold 8 requests at once, goes on after given tokens, and hands its work back at once on SIGTERM, then ends.

`{redis}` in the command is replaced by the URL. The kit starts a Redis server of its own (`redis-server` on PATH).
"""
