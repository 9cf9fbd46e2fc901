"""Structured pruning of Llama-family models: what matters, what to keep, and the smaller model."""
