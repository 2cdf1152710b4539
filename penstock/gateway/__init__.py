"""One gateway: its open requests, its admission, what it knows of its pool. Knows no route and no framework."""
