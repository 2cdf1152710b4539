"""The routes of vLLM that OpenAI's API does not have: its tokenizer's, scores, and Cohere's and Jina's rerank.

`tokenizer` and `scores` translate bodies and results, both pure; `routes` puts them together.
"""
