"""Anthropic's Messages API over the same jobs and events. Translation only; all but its route is pure."""
