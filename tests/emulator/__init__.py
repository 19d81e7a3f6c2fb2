"""Runs the package's CUDA text on the CPU, thread by thread, and checks what every thread does."""

from tests.emulator.build import compiler
from tests.emulator.launch import (
    Array,
    EmulatedColumns,
    EmulatedCopy,
    EmulatedKernel,
    EmulationError,
    Operands,
    Program,
    Report,
    Scales,
    Strides,
)

__all__ = [
    "Array",
    "EmulatedColumns",
    "EmulatedCopy",
    "EmulatedKernel",
    "EmulationError",
    "Operands",
    "Program",
    "Report",
    "Scales",
    "Strides",
    "compiler",
]
