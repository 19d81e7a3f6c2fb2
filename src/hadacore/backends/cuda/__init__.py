"""The CUDA backend: kernels compiled at first use by NVRTC, cached on disk, launched through cuda.core."""

from hadacore.backends import Capabilities
from hadacore.backends.cuda.launch import support, transform
from hadacore.elements import CUDA_ELEMENTS
from hadacore.formats import FORMATS
from hadacore.kernels.base_configurations import LARGEST_ORDER
from hadacore.matrices import MAXIMUM_SIZE

CAPABILITIES = Capabilities(
    "NVIDIA GPUs, sm_80 and above", "cuda-core, NVRTC", tuple(e.name for e in CUDA_ELEMENTS), MAXIMUM_SIZE, LARGEST_ORDER,
    None, tuple(f.name for f in FORMATS), "any granularity",
)  # fmt: skip

__all__ = ["CAPABILITIES", "support", "transform"]
