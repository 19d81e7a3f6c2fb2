"""The transform as an ``nn.Module``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hadacore.checks import check_block_size, check_scale
from hadacore.functional import hadamard_transform


class HadamardTransform(nn.Module):
    """Hadamard transform of the last dimension, with optional fixed random signs.

    ``forward(x)`` is ``hadamard_transform(x, scale, block_size=block_size, signs=self.signs, inverse=inverse)``.

    Args:
        n: Elements of the last dimension.
        scale: Factor of the result; None is orthonormal.
        block_size: Transform blocks of this many elements separately; divides ``n``.
        random_signs: Draw ``n`` signs, kept as the buffer ``signs`` and saved with the module.
        generator: Source of the signs, for reproducible ones.
        inverse: Apply the inverse rotation.

    Raises:
        TypeError, ValueError: As :func:`hadacore.hadamard_transform`.

    >>> rotate = HadamardTransform(128, random_signs=True)
    >>> undo = rotate.inverted()
    >>> x = torch.randn(2, 128)
    >>> torch.allclose(undo(rotate(x)), x, atol=1e-5)
    True
    """

    signs: Tensor | None

    def __init__(
        self,
        n: int,
        scale: float | None = None,
        *,
        block_size: int | None = None,
        random_signs: bool = False,
        generator: torch.Generator | None = None,
        inverse: bool = False,
    ) -> None:
        super().__init__()
        size = check_block_size(n, block_size)
        check_scale(scale, size)
        self.n, self.scale, self.block_size, self.inverse = n, scale, block_size, inverse
        signs = torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8) * 2 - 1 if random_signs else None
        self.register_buffer("signs", signs)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` of shape ``(..., n)``."""
        if x.shape[-1:] != (self.n,):
            raise ValueError(f"x must have {self.n} elements in its last dimension, got shape {tuple(x.shape)}")
        return hadamard_transform(x, self.scale, block_size=self.block_size, signs=self.signs, inverse=self.inverse)

    def inverted(self) -> HadamardTransform:
        """The module that undoes this one (exactly so for the orthonormal scale). It shares the signs."""
        scale = self.scale
        if scale is not None:
            if scale == 0:
                raise ValueError("a transform with scale 0 has no inverse")
            scale = 1.0 / (scale * (self.block_size or self.n))
        other = HadamardTransform(self.n, scale, block_size=self.block_size, inverse=not self.inverse)
        other.register_buffer("signs", self.signs)
        return other

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        parts = [str(self.n)]
        if self.scale is not None:
            parts.append(f"scale={self.scale}")
        if self.block_size is not None:
            parts.append(f"block_size={self.block_size}")
        if self.signs is not None:
            parts.append("random_signs=True")
        if self.inverse:
            parts.append("inverse=True")
        return ", ".join(parts)
