"""Who sends requests: API keys, and the caller of a request."""
