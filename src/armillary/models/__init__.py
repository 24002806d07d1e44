"""Architectures as data, checkpoints, tokenizers."""
