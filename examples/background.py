"""Submit a request and fetch its answer later: `python examples/background.py --url http://127.0.0.1:8000`.

With the id alone another process gets the answer, through any gateway.
"""

from __future__ import annotations

import argparse
import time

from penstock import Client

parser = argparse.ArgumentParser()
parser.add_argument("--url", default="http://127.0.0.1:8000")
url = parser.parse_args().url

with Client(url) as client:
    request_id = client.submit("A long report, please.", max_tokens=64).request_id
print(f"submitted {request_id}")

with Client(url) as client:  # another process, any time before the request expires
    handle = client.handle(request_id)
    while not (status := handle.status()).is_over:
        print(f"{status.state}, place {status.position}" if status.position else status.state)
        time.sleep(0.2)
    print(f"{status.state}: {status.text}")
