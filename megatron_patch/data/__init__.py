"""Tokenizer, indexed data, fine-tuning data, samplers, and the preparation of all of it."""
