"""Anthropic's Messages API over the same jobs and events. Translation only, and pure but for its route."""
