"""HTTP dialects over the engine: parse, admit, stream, render errors, show health and metrics."""
