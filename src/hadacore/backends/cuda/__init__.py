"""The CUDA backend: kernels compiled at first use by NVRTC, cached on disk, launched through cuda.core."""

from hadacore.backends.cuda.launch import support, transform

__all__ = ["support", "transform"]
