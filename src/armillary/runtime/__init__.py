"""Requests to tokens: the torch executor, memory, text, and the thread that runs them."""
