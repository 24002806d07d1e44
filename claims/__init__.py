"""Published results, each with a measurement that could refute it. Run them with `armillary claims [name]`."""
