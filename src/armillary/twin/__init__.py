"""The twin: the engine's own scheduler, under a clock that jumps and an executor that predicts."""
