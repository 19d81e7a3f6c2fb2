"""The one table of GPU architectures: what a compute capability is called, and what it offers a kernel."""

from __future__ import annotations

from dataclasses import dataclass

Capability = tuple[int, int]

_KIB = 1024
MINIMUM_CAPABILITY: Capability = (8, 0)
HOPPER: Capability = (9, 0)  # clusters, programmatic launch, bulk copies

#: Blocks of a cluster that every GPU with clusters takes.
MAXIMUM_CLUSTER = 8


@dataclass(frozen=True)
class Architecture:
    """A GPU architecture.

    Attributes:
        capability: Compute capability, major and minor.
        name: What the compiler is asked for.
        shared_memory_per_block: Bytes of shared memory one block may use (CUDA C++ Programming Guide,
            "Technical Specifications per Compute Capability").
    """

    capability: Capability
    name: str
    shared_memory_per_block: int

    def blocks_that_fit(self, shared_bytes: int) -> int:
        """Blocks with so much shared memory that a multiprocessor holds: it has one KiB more than a block may use, and keeps
        one for each block."""
        return max(1, (self.shared_memory_per_block + _KIB) // (shared_bytes + _KIB))

    def least_bytes_of(self, blocks: int) -> int:
        """Shared memory of a block, in whole KiB, from which on no more than so many fit."""
        return (self.shared_memory_per_block // _KIB + 1) // (blocks + 1) * _KIB

    @property
    def has_clusters(self) -> bool:
        """Whether blocks can form clusters and write to each other's shared memory."""
        return self.capability >= HOPPER

    @property
    def has_programmatic_launch(self) -> bool:
        """Whether a kernel can be started before the stream's previous one has ended."""
        return self.capability >= HOPPER

    @property
    def has_wgmma(self) -> bool:
        """Whether groups of 4 warps multiply from shared memory by ``wgmma``, which only compute capability 9.0 does."""
        return self.capability == HOPPER


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture((8, 0), "sm_80", 163 * _KIB),
    Architecture((8, 6), "sm_86", 99 * _KIB),
    Architecture((8, 7), "sm_87", 163 * _KIB),
    Architecture((8, 9), "sm_89", 99 * _KIB),
    Architecture((9, 0), "sm_90a", 227 * _KIB),
    Architecture((10, 0), "sm_100a", 227 * _KIB),
    Architecture((10, 3), "sm_103a", 227 * _KIB),
    Architecture((11, 0), "sm_110a", 227 * _KIB),
    Architecture((12, 0), "sm_120", 99 * _KIB),
    Architecture((12, 1), "sm_121", 99 * _KIB),
)

BY_NAME: dict[str, Architecture] = {a.name: a for a in ARCHITECTURES}
_BY_CAPABILITY: dict[Capability, Architecture] = {a.capability: a for a in ARCHITECTURES}

#: Architectures that continuous integration compiles every kernel for: one of each kind of machine.
CHECKED: tuple[str, ...] = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120")


def architecture_of(capability: Capability) -> Architecture:
    """The architecture of a compute capability.

    One newer than the table gets the smallest shared memory of its major version, or 99 KiB.

    Raises:
        ValueError: The GPU is older than compute capability 8.0, which has no bfloat16 Tensor Cores.
    """
    known = _BY_CAPABILITY.get(capability)
    if known is not None:
        return known
    major, minor = capability
    if capability < MINIMUM_CAPABILITY:
        raise ValueError(
            f"got a GPU of compute capability {major}.{minor} (sm_{major}{minor}); hadacore's CUDA kernels need 8.0 (sm_80, "
            "Ampere) or newer, for bfloat16 Tensor Cores and asynchronous copies. Move the tensor to the CPU, "
            "or use a newer GPU."
        )
    siblings = [a.shared_memory_per_block for a in ARCHITECTURES if a.capability[0] == major]
    return Architecture(capability, f"sm_{major}{minor}", min(siblings, default=99 * _KIB))
