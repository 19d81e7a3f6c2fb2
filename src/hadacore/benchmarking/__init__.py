"""Measuring: times against a copy and against other packages, errors against correct rounding, tables and pictures.

Time is device time in microseconds: on a GPU that of one call inside a replayed CUDA graph, on the CPU wall time.
*hot* uses the same buffers every time, *cold* goes round buffers of 300 MB, random data throughout. Everything is
compared with a copy of the same bytes in the same run.
"""
