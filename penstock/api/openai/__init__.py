"""OpenAI's APIs over the same jobs and events. Translation is pure; what is not is `api/intake` and `api/answer`."""
