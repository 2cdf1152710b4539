"""What runs, and how it starts and ends: gateway, worker, both in one, and the parents that restart them."""
