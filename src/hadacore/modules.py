"""The transform as an ``nn.Module``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hadacore.backends.selection import check_backend
from hadacore.checks import check_base, check_block_size, check_scale
from hadacore.elements import BY_DTYPE, ELEMENTS
from hadacore.functional import hadamard_transform

# How far B B^T may be from a multiple of the identity for B^T to count as an inverse: a bfloat16 B is off by 2^-8.
_ORTHOGONALITY = 2.0**-7


class HadamardTransform(nn.Module):
    """Hadamard transform of the last dimension, with optional fixed random signs and an optional base matrix.

    ``forward(x)`` is ``hadamard_transform(x, scale, block_size=block_size, base=self.base, signs=self.signs,
    inverse=inverse, backend=backend)``.

    Args:
        n: Elements of the last dimension.
        scale: Factor of the result; None is orthonormal.
        block_size: Transform blocks of this many elements separately; divides ``n``.
        base: An ``(m, m)`` matrix in place of the library's, saved with the module: an ``nn.Parameter`` as the parameter
            ``base``, which is then learned, another tensor as the buffer ``base``. Converting the module converts it too.
        random_signs: Draw ``n`` signs, kept as the buffer ``signs`` and saved with the module.
        generator: Source of the signs, for reproducible ones.
        inverse: Apply the inverse rotation.
        backend: As in :func:`hadacore.hadamard_transform`.

    Raises:
        TypeError, ValueError: As :func:`hadacore.hadamard_transform`.

    >>> rotate = HadamardTransform(128, random_signs=True)
    >>> undo = rotate.inverted()
    >>> x = torch.randn(2, 128)
    >>> torch.allclose(undo(rotate(x)), x, atol=1e-5)
    True
    >>> learned = HadamardTransform(12, scale=0.5, base=nn.Parameter(torch.eye(3)))
    >>> learned
    HadamardTransform(12, scale=0.5, base=(3, 3))
    >>> [name for name, _ in learned.named_parameters()]
    ['base']
    """

    signs: Tensor | None
    base: Tensor | None

    def __init__(
        self,
        n: int,
        scale: float | None = None,
        *,
        block_size: int | None = None,
        base: Tensor | None = None,
        random_signs: bool = False,
        generator: torch.Generator | None = None,
        inverse: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        size = check_block_size(n, block_size) if base is None else _check_base(base, n, block_size)
        check_scale(scale, size)
        check_backend(backend, torch.device("meta"))  # where the module will run is not known yet
        self.n, self.scale, self.block_size, self.inverse, self.backend = n, scale, block_size, inverse, backend
        signs = torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8) * 2 - 1 if random_signs else None
        self.register_buffer("signs", signs)
        if isinstance(base, nn.Parameter):
            self.register_parameter("base", base)
        else:
            self.register_buffer("base", base)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` of shape ``(..., n)``."""
        if x.shape[-1:] != (self.n,):
            raise ValueError(f"x must have {self.n} elements in its last dimension, got shape {tuple(x.shape)}")
        return hadamard_transform(
            x, self.scale, block_size=self.block_size, base=self.base, signs=self.signs, inverse=self.inverse,
            backend=self.backend,
        )  # fmt: skip

    def inverted(self) -> HadamardTransform:
        """The module that undoes this one (exactly so for the orthonormal scale). It shares the signs and the base.

        Raises:
            ValueError: The scale is 0, or the base's transpose is not its inverse up to a factor, as it is for an orthogonal
                or a Hadamard matrix; a base that is learned later may no longer be undone.
        """
        size = self.block_size or self.n
        scale = self.scale
        if scale == 0:
            raise ValueError("a transform with scale 0 has no inverse")
        gain = float(size) if self.base is None else _squared_gain(self.base) * (size // self.base.shape[0])
        if scale is not None or gain != size:
            scale = 1.0 / (check_scale(scale, size) * gain)
        other = HadamardTransform(
            self.n, scale, block_size=self.block_size, base=self.base, inverse=not self.inverse, backend=self.backend
        )
        other.register_buffer("signs", self.signs)
        return other

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        parts = [str(self.n)]
        if self.scale is not None:
            parts.append(f"scale={self.scale}")
        if self.block_size is not None:
            parts.append(f"block_size={self.block_size}")
        if self.base is not None:
            parts.append(f"base={tuple(self.base.shape)}")
        if self.signs is not None:
            parts.append("random_signs=True")
        if self.inverse:
            parts.append("inverse=True")
        if self.backend is not None:
            parts.append(f"backend={self.backend!r}")
        return ", ".join(parts)


def _check_base(base: Tensor, n: int, block_size: int | None) -> int:
    """The transform size of rows of ``n`` elements with this base."""
    if isinstance(base, Tensor) and base.dtype not in BY_DTYPE:
        allowed = ", ".join(element.name for element in ELEMENTS)
        raise TypeError(f"base must be one of {allowed}, got {base.dtype}; convert it with base.to(torch.float32)")
    like = base.detach().new_empty(n) if isinstance(base, Tensor) else torch.empty(n)
    return check_base(base, like, block_size)[1]


def _squared_gain(base: Tensor) -> float:
    """The c of ``B B^T = c I``."""
    wide = base.detach().double()
    products = wide @ wide.T
    gain = products.diagonal().mean().item()
    wrong = (products - gain * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)).abs().max().item()
    if not wrong <= _ORTHOGONALITY * gain or gain == 0:
        raise ValueError(
            "the transpose of this base does not undo it: base @ base.T must be a multiple of the identity, got entries "
            f"that are off by {wrong:.3g} beside {gain:.3g} on the diagonal; invert the base yourself and pass the result's "
            "transpose"
        )
    return float(gain)
