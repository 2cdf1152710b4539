"""A backend of your own in ten lines: penstock serve --model echo=examples/echo_backend.py:Echo:pause_ms=20"""

import asyncio

from penstock import Backend


class Echo(Backend):
    def __init__(self, pause_ms: float = 0.0) -> None:
        self.pause_s = pause_ms / 1000

    async def stream(self, job):
        for word in job.text.split():
            await asyncio.sleep(self.pause_s)
            yield word + " "
