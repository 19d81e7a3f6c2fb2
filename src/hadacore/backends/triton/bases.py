"""The library's base matrices on a device, one small tensor for each matrix and type, kept."""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.matrices import Factorization
from hadacore.matrices.orders import base_matrix

_kept: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def known_base(found: Factorization, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H_m of a factorization.

    Raises:
        RuntimeError: It would have to be uploaded while a CUDA graph is captured.
    """
    key = found.base_order, dtype, device
    base = _kept.get(key)
    if base is None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"the base matrix of size {found.n} is not on {device} yet, and cannot be uploaded while a CUDA graph is "
                "captured; transform a row of this size and type once before the capture"
            )
        base = _kept[key] = torch.tensor(base_matrix(found), dtype=dtype).to(device)
    return base
