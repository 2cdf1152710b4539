"""OpenAI's Responses API: its body, its items, its events, its routes, and what a follow-up refers to."""
