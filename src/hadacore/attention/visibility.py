"""Which keys a query sees: causal order, a sliding window, padding, or any boolean mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Visibility:
    """Which keys a query sees. Query i stands at position ``keys - queries + i`` of the keys, as FlashAttention aligns them.

    Attributes:
        causal: Only keys up to its own position.
        window: Only the last so many keys up to its own position; None for no limit. It includes the query's own key.
        padding: ``(batch, keys)``, true where there is a key; with ``causal`` it says which queries there are, too.
        mask: ``(batch or 1, heads or 1, queries, keys)``, true where a key is seen.
    """

    causal: bool = False
    window: int | None = None
    padding: Tensor | None = None
    mask: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether neither padding nor a mask is given."""
        return self.padding is None and self.mask is None

    def block(self, rows: slice, columns: slice, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """What ``rows`` see of ``columns``, as it broadcasts to ``(batch, heads, rows, columns)``; None for everything."""
        parts = []
        shift = keys - queries
        row = torch.arange(rows.start, rows.stop, device=device)[:, None] + shift
        column = torch.arange(columns.start, columns.stop, device=device)
        if self.causal and columns.stop - 1 > rows.start + shift:
            parts.append((column <= row)[None, None])
        if self.window is not None and columns.start <= rows.stop - 1 + shift - self.window:
            parts.append((column > row - self.window)[None, None])
        if self.padding is not None:
            parts.append(self.padding[:, None, None, columns])
            if self.causal:
                parts.append(self.queries_of_padding(queries)[:, None, rows, None])
        if self.mask is not None:
            parts.append(self.mask[:, :, rows, columns])
        if not parts:
            return None
        seen = parts[0]
        for part in parts[1:]:
            seen = seen & part
        return seen

    def queries_of_padding(self, queries: int) -> Tensor:
        """``(batch, queries)``: which queries there are, being the last ones of the keys."""
        assert self.padding is not None
        return self.padding[:, self.padding.shape[1] - queries :]

    def used(self, queries: int) -> tuple[Tensor | None, Tensor | None]:
        """``(batch or 1, queries)`` and ``(batch or 1, keys)``: which take part at all; None where all of them do."""
        used_queries = used_keys = None
        if self.padding is not None:
            used_keys = self.padding
            if self.causal:
                used_queries = self.queries_of_padding(queries)
        if self.mask is not None:
            seen = self.mask.any(1)
            by_mask = seen.any(2), seen.any(1)
            used_queries = by_mask[0] if used_queries is None else used_queries & by_mask[0]
            used_keys = by_mask[1] if used_keys is None else used_keys & by_mask[1]
        return used_queries, used_keys


@dataclass(frozen=True, eq=False)
class Simplified:
    """What a mask says in fewer words.

    Attributes:
        keys: Keys up to the last one that is seen; those after it are left away.
        causal: As in :class:`Visibility`, and so the next two.
        window: Sliding window.
        padding: ``(batch, keys)``, or None if there is none.
    """

    keys: int
    causal: bool
    window: int | None
    padding: Tensor | None


def simplify(mask: Tensor, *, skip_padding: bool = False) -> Simplified | None:
    """What a mask ``(batch or 1, 1, queries, keys)`` says in terms of causal order, a window and padding, or None if it cannot
    be said so. Waits for a GPU.

    Args:
        mask: True where a key is seen.
        skip_padding: Whether a query whose own key nobody sees is padding, whose result does not matter.

    >>> simplify(torch.ones(1, 1, 4, 4, dtype=torch.bool).tril())
    Simplified(keys=4, causal=True, window=None, padding=None)
    """
    if mask.shape[1] != 1 or not mask.numel():
        return None
    seen = mask[:, 0]
    used = seen.any(1).any(0).nonzero()
    if not used.numel():
        return None
    queries = seen.shape[1]
    keys = max(int(used[-1]) + 1, min(queries, seen.shape[2]))
    seen = seen[..., :keys]
    there = seen.any(1)
    padding = None if bool(there.all()) else there
    # One query, or queries that all see the same keys.
    if bool((seen == there[:, None]).all()):
        return Simplified(keys, False, None, padding)
    if queries > keys:
        return None
    free = ~there[:, keys - queries :, None] if skip_padding else seen.new_zeros(())
    shown = seen.sum(2).max()
    for window in (None, int(shown)):
        order = Visibility(True, window, padding).block(slice(0, queries), slice(0, keys), queries, keys, seen.device)
        assert order is not None
        if bool(((seen == order[:, 0]) | free).all()):
            return Simplified(keys, True, window, padding)
    return None
