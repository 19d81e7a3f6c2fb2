"""CUDA text of the kernels, assembled by :mod:`hadacore.kernels.source`."""
