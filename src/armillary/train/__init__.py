"""Training: tokenizer and model of the Isles, in one readable loop."""
