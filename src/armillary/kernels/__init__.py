"""Tensor operations behind one table: see `armillary.kernels.table`."""
