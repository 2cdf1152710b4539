"""One gateway: what it holds open, whom it admits, what it knows of its pool. Knows no route and no framework."""
