"""Kernels: what they compute and how (stages), which one runs (configurations), and their CUDA text (source)."""
