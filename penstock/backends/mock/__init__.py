"""The simulator: a backend that needs no model, with the delays and failures that are asked for."""
