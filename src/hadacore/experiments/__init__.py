"""Experiments on accuracy that need no model and no download."""

from hadacore.experiments.fa3_error import ErrorRow, fa3_inputs, run_fa3_error
from hadacore.experiments.fa3_error_report import draw_fa3_error, fa3_error_table, write_fa3_error

__all__ = ["ErrorRow", "draw_fa3_error", "fa3_error_table", "fa3_inputs", "run_fa3_error", "write_fa3_error"]
