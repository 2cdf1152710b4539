"""A hundred prompts side by side, with a progress bar: `python examples/fan_out.py --url http://127.0.0.1:8000`.

Send all requests at once: they wait in the queue, and the server decides how many run.
"""

from __future__ import annotations

import argparse
import asyncio

from rich.progress import Progress

from penstock import AsyncClient


async def main(url: str, num: int) -> None:
    async with AsyncClient(url, max_connections=num) as client:
        with Progress() as progress:
            bar = progress.add_task("asking", total=num)

            async def one(number: int) -> str:
                answer = await client.generate(f"Say something about the number {number}.", max_tokens=16)
                progress.advance(bar)
                return answer.text

            answers = await asyncio.gather(*(one(number) for number in range(num)))
    print(f"{len(answers)} answers; the first: {answers[0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--num", type=int, default=100)
    asked = parser.parse_args()
    asyncio.run(main(asked.url, asked.num))
