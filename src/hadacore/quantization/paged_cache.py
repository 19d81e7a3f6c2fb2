"""Writing to a paged cache of keys: blocks of ``block_size`` slots, of which a sequence owns any."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hadacore.ops import LIBRARY, increment_version

LIBRARY.define(
    "write_paged_cache(Tensor values, Tensor slot_mapping, Tensor(a!) cache) -> ()", tags=(torch.Tag.pt2_compliant_tag,)
)
_INTEGERS = (torch.int32, torch.int64)


def paged_slots(block_table: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """The slot of each token: ``block_table[s, p // block_size] * block_size + p % block_size``.

    Args:
        block_table: int32 or int64, ``(sequences, blocks of the longest)``: the cache's blocks that a sequence owns, in order.
        positions: int32 or int64, ``(sequences, tokens)``: each token's position in its sequence; negative for padding.
        block_size: Slots of a block.

    Returns:
        int64, ``(sequences * tokens,)``, -1 for padding: the ``slot_mapping`` of :func:`quantize_query_key`.

    Raises:
        TypeError: A tensor is not of integers.
        ValueError: Wrong shapes or block size.

    >>> paged_slots(torch.tensor([[7, 2]]), torch.tensor([[15, 16, -1]]), 16).tolist()
    [127, 32, -1]
    """
    for name, tensor in (("block_table", block_table), ("positions", positions)):
        if not isinstance(tensor, Tensor) or tensor.dtype not in _INTEGERS:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be an int32 or int64 tensor, got {got}")
    if block_table.dim() != 2 or positions.dim() != 2 or block_table.shape[0] != positions.shape[0]:
        raise ValueError(
            "block_table must have shape (sequences, blocks) and positions (sequences, tokens), got "
            f"{tuple(block_table.shape)} and {tuple(positions.shape)}"
        )
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size must be a positive integer, got {block_size!r}")
    inside = positions.clamp(min=0).long()
    blocks = block_table.long().gather(1, inside // block_size)
    return torch.where(positions < 0, -1, blocks * block_size + inside % block_size).flatten()


def check_cache(
    cache: Tensor, slot_mapping: Tensor | None, k: Tensor, dtype: torch.dtype, name: str, entry: Sequence[int]
) -> None:
    """Check a cache of ``(blocks, block_size, *entry)`` for the tokens of ``k``, ``(batch, tokens, ...)``."""
    if not isinstance(cache, Tensor) or cache.dtype != dtype:
        got = cache.dtype if isinstance(cache, Tensor) else type(cache).__name__
        raise TypeError(f"{name} must be a {dtype} tensor, got {got}")
    if cache.dim() != 2 + len(entry) or tuple(cache.shape[2:]) != tuple(entry):
        raise ValueError(f"{name} must have shape (blocks, block_size, *{tuple(entry)}), got {tuple(cache.shape)}")
    if slot_mapping is None:
        raise ValueError(
            f"{name} needs slot_mapping=, a slot for each token; hadacore.paged_slots makes it of a block table"
        )
    if not isinstance(slot_mapping, Tensor) or slot_mapping.dtype not in _INTEGERS:
        got = slot_mapping.dtype if isinstance(slot_mapping, Tensor) else type(slot_mapping).__name__
        raise TypeError(f"slot_mapping must be an int32 or int64 tensor, got {got}")
    tokens = k.shape[0] * k.shape[1]
    if slot_mapping.shape != (tokens,):
        raise ValueError(
            f"slot_mapping must have shape (batch * tokens,) = {(tokens,)}, got {tuple(slot_mapping.shape)}"
        )
    if cache.device != k.device or slot_mapping.device != k.device:
        raise ValueError(
            f"{name} and slot_mapping must be on k's device {k.device}, got {cache.device} and {slot_mapping.device}"
        )


def write_paged_cache(values: Tensor, slot_mapping: Tensor, cache: Tensor) -> None:
    """Write ``values[t]`` to ``cache[slot // block_size, slot % block_size]``; arguments are already checked."""
    torch.ops.hadacore.write_paged_cache(values, slot_mapping, cache)


def _write(values: Tensor, slot_mapping: Tensor, cache: Tensor) -> None:
    slots = slot_mapping.long()
    if slots.numel() == 0:
        return
    block_size = cache.shape[1]
    limit = cache.shape[0] * block_size
    if slots.device.type == "cpu" and int(slots.max()) >= limit:
        raise ValueError(f"slots must be below {limit}, the cache's blocks times their size, got {int(slots.max())}")
    # A token without a slot repeats the write of the first token that has one; where none has, slot 0 keeps its content.
    # No value is looked at on the host, so nothing waits for a GPU.
    wanted = slots >= 0
    source = torch.where(wanted, torch.arange(slots.numel(), device=slots.device), wanted.int().argmax())
    slots = slots[source].clamp_(min=0)
    bytes_of_cache = cache.view(torch.uint8) if cache.element_size() == 1 else cache
    bytes_of_values = values.view(torch.uint8) if values.element_size() == 1 else values
    where = (slots // block_size, slots % block_size)
    written = torch.where(wanted.any(), bytes_of_values[source], bytes_of_cache[where])
    bytes_of_cache.index_put_(where, written)
    increment_version(cache)


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("write_paged_cache", _write, _key)


@torch.library.register_fake("hadacore::write_paged_cache", lib=LIBRARY)
def _fake(values: Tensor, slot_mapping: Tensor, cache: Tensor) -> None:
    return None
