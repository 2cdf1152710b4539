"""Ollama's API over the same jobs and events. Translation only; all but its routes is pure."""
