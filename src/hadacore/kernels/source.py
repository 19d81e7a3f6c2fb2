"""Assembles the CUDA text of a kernel and the ``-D`` constants that specialise it.

The text includes no headers, so compilation is fast. It is the same for every configuration of a kernel, but for the base
matrix that a size ``m * 2^k`` brings along; constants tell configurations apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources

from hadacore.kernels.base_configurations import BASE_SIGNS, BaseConfiguration, OrderConfiguration
from hadacore.kernels.base_signs import base_row_signs_text, base_signs_text, dense_base, fragment_signs_text
from hadacore.kernels.columns import ColumnsConfiguration
from hadacore.kernels.configurations import KernelConfiguration
from hadacore.kernels.fragment_configurations import FragmentConfiguration
from hadacore.kernels.heads import HeadsConfiguration
from hadacore.kernels.warpgroup_configurations import WarpgroupConfiguration
from hadacore.kernels.wgmma import wgmma_text
from hadacore.matrices.constructions import Matrix

Configuration = KernelConfiguration | ColumnsConfiguration | OrderConfiguration | HeadsConfiguration

ENTRY_POINT = "hadamard_transform"
COPY_ENTRY_POINT = "copy_vectors"
NARROWER_COPY_ENTRY_POINT = "copy_narrower"

# In the order in which the compiler reads them, then those of the kernel.
_PARTS: tuple[tuple[str, str], ...] = (
    ("hadacore.kernels.cuda", "ptx.cuh"),
    ("hadacore.kernels.cuda", "ptx_hopper.cuh"),
    ("hadacore.kernels.cuda", "element.cuh"),
    ("hadacore.kernels.cuda", "signs.cuh"),
    ("hadacore.kernels.cuda", "programmatic.cuh"),
    ("hadacore.kernels.cuda", "butterflies.cuh"),
)
_PLAIN_EPILOGUE = ("scale_and_round.cuh",)
_QUANTIZING_EPILOGUE = ("codes.cuh", "block_scales.cuh", "quantize.cuh")
_KERNEL_PARTS: dict[str, tuple[str, ...]] = {
    "warp_rows": ("rows.cuh", "tile.cuh", "warp_rows.cu"),
    "exchange_rows": ("rows.cuh", "tile.cuh", "staging.cuh", "exchange.cuh", "exchange_rows.cu"),
    "base_rows": (
        "rows.cuh",
        "tile.cuh",
        "both_tensors.cuh",
        "base.cuh",
        "panel.cuh",
        "base_products.cuh",
        "base_halves.cuh",
        "base_columns.cuh",
        "base_store.cuh",
        "base_drift.cuh",
        "base_rows.cu",
    ),
    "fragment_rows": ("rows.cuh", "tile.cuh", "base.cuh", "fragments.cuh", "fragment_rows.cu"),
    "warpgroup_rows": (
        "rows.cuh",
        "tile.cuh",
        "both_tensors.cuh",
        "warpgroup_panel.cuh",
        "warpgroup_products.cuh",
        "warpgroup_store.cuh",
        "warpgroup_rows.cu",
    ),
    "columns": ("columns.cu",),
    "heads": ("rows.cuh", "tile.cuh", "heads.cu"),
}

# Those before the kernel itself that a quantizing epilogue needs.
_QUANTIZING_PARTS: dict[str, tuple[str, ...]] = {
    "warp_rows": ("shared_row.cuh", "row_maximum.cuh"),
    "heads": (),
    "exchange_rows": ("row_maximum.cuh",),
    "base_rows": ("base_quantize.cuh", "row_maximum.cuh"),
    "warpgroup_rows": ("warpgroup_quantize.cuh", "warpgroup_producers.cuh", "row_maximum.cuh"),
}


def _read(package: str, name: str) -> str:
    return f'#line 1 "{name}"\n' + resources.files(package).joinpath(name).read_text(encoding="utf-8")


def kernel_source(configuration: Configuration, *, ptx: bool = True) -> str:
    """The CUDA text of a configuration's kernel.

    ``ptx=False`` leaves inline PTX out, for a caller that supplies those functions itself.
    """
    fusion = configuration.fusion
    has_prologue = fusion is not None and fusion.prologue is not None
    return _text(configuration.kernel, _tables(configuration, ptx), fusion is not None, has_prologue, ptx)


def _tables(c: Configuration, ptx: bool) -> tuple[str, ...]:
    """What is written out for one configuration: the signs of its base, and instructions of its widths."""
    if isinstance(c, BaseConfiguration):
        texts = [wgmma_text((64,))] if ptx and c.wgmma and c.fusion is not None else []
        if c.base == BASE_SIGNS:
            texts.append(_signs(base_signs_text, c.size, c.log2_merge, c.transposed, c.halves))
        return tuple(texts)
    if isinstance(c, FragmentConfiguration):
        return (_signs(fragment_signs_text, c.size, c.log2_merge, c.transposed, False),)
    if isinstance(c, WarpgroupConfiguration):
        signs = _signs(base_row_signs_text, c.size, c.log2_merge, c.transposed, False)
        return (wgmma_text(c.widths), signs) if ptx else (signs,)
    return ()


@functools.lru_cache(maxsize=64)
def _signs(text: Callable[[Matrix], str], size: int, log2_merge: int, transposed: bool, halves: bool) -> str:
    return text(dense_base(size, log2_merge, transposed, halves))


@functools.lru_cache(maxsize=64)
def _text(kernel: str, tables: tuple[str, ...], quantizes: bool, has_prologue: bool, ptx: bool) -> str:
    parts = [_read(package, name) for package, name in _PARTS if ptx or not name.startswith("ptx")]
    parts += [_read("hadacore.epilogues", name) for name in (_QUANTIZING_EPILOGUE if quantizes else _PLAIN_EPILOGUE)]
    parts += tables
    if has_prologue:
        parts.append(_read("hadacore.kernels.cuda", "prologue.cuh"))
    names = list(_KERNEL_PARTS[kernel])
    if quantizes:
        names[-1:-1] = _QUANTIZING_PARTS[kernel]
    parts += [_read("hadacore.kernels.cuda", name) for name in names]
    return "\n".join(parts)


@functools.cache
def copy_source() -> str:
    """The CUDA text of the copy kernel that times are compared with."""
    return "\n".join(_read("hadacore.kernels.cuda", name) for name in ("ptx.cuh", "copy.cu"))


def constants(configuration: Configuration) -> tuple[tuple[str, str], ...]:
    """The ``-D`` constants of a configuration."""
    values = configuration.constants()
    if configuration.fusion is not None:
        values |= configuration.fusion.constants()
    return tuple((name, str(value)) for name, value in values.items())
