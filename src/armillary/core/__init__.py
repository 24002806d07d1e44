"""The core: what to compute next. Standard library only; no tensor, no thread, no clock of its own."""
