"""The quantizers by their definition, in NumPy and independent of the package: nearest of all values that exist.

Values of a code are enumerated from sign, exponent and mantissa; a code is found by exact comparison of distances in
float64, ties to the even code. Scales follow the rules of ``docs/quantization.md`` in NumPy float32.
"""

from __future__ import annotations

import math

import numpy as np

F = np.float32
LAYOUT = {"e4m3": (4, 3, 7), "e5m2": (5, 2, 15), "e2m1": (2, 1, 1)}


def values_of(kind: str) -> np.ndarray:
    """The value of each nonnegative code, NaN and infinity left out, in order."""
    exponent_bits, mantissa_bits, bias = LAYOUT[kind]
    values = []
    for code in range(1 << (exponent_bits + mantissa_bits)):
        exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        if kind == "e5m2" and exponent == 31:
            break
        if kind == "e4m3" and code == 0x7F:
            break
        fraction = mantissa / (1 << mantissa_bits)
        values.append(fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias))
    return np.array(values)


def nearest_float(x: np.ndarray, kind: str) -> np.ndarray:
    """The code, with sign bit, of the value nearest to each fp32, ties to the even code; NaN is 0x7F."""
    table = values_of(kind)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        magnitude = np.minimum(np.abs(x.astype(np.float64)), table[-1])
    upper = np.clip(np.searchsorted(table, np.nan_to_num(magnitude)), 1, len(table) - 1)
    below, above = magnitude - table[upper - 1], table[upper] - magnitude
    code = np.where((above < below) | ((above == below) & (upper % 2 == 0)), upper, upper - 1)
    sign_bit = 8 if kind == "e2m1" else 128
    code = code + np.where(np.signbit(x), sign_bit, 0)
    return np.where(np.isnan(x), 0x7F, code).astype(np.uint8)


def nearest_integer(x: np.ndarray, maximum: int) -> np.ndarray:
    table = np.arange(-maximum, maximum + 1)
    distance = np.abs(x.astype(np.float64)[..., None] - table)
    best = distance.min(-1, keepdims=True)
    tied = distance == best
    even_first = np.where(tied, np.where(table % 2 == 0, 0, 1), 2)
    return table[even_first.argmin(-1)].astype(np.int8)


def e8m0_value(byte: np.ndarray) -> np.ndarray:
    return np.array([math.ldexp(1.0, int(b) - 127) for b in byte.ravel()]).reshape(byte.shape).astype(F)


def quantize(
    rotated: np.ndarray, name: str, block: int, clip_ratio: float = 1.0, global_scale: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Unpacked codes as bytes, and plain scales: fp32, or the bytes of E8M0 and E4M3. All of ``rotated`` is finite."""
    groups = rotated.reshape(rotated.shape[0], -1, block)
    amax = np.abs(groups).max(-1)
    clip = F(clip_ratio)
    if name in ("mxfp8", "mxfp4"):
        largest = {"mxfp8": 8, "mxfp4": 2}[name]
        exponents = [math.frexp(float(a * clip))[1] - 1 - largest if a else -127 for a in amax.ravel()]
        scales = np.clip(np.array(exponents).reshape(amax.shape) + 127, 0, 254).astype(np.uint8)
        factor = (1.0 / e8m0_value(scales).astype(np.float64)).astype(F)
    elif name == "nvfp4":
        wanted = amax * F(clip_ratio / 6)
        if global_scale is not None:
            wanted = wanted * (F(1) / F(global_scale))
        scales = np.maximum(nearest_float(wanted, "e4m3"), 1)
        decode = values_of("e4m3")[scales].astype(F)
        if global_scale is not None:
            decode = np.maximum(decode * F(global_scale), F(2.0**-126))
        factor = F(1) / decode
    else:
        maximum = {"fp8_e4m3": 448, "fp8_e5m2": 57344, "int8": 127, "int4": 7}[name]
        scales = np.maximum(amax * F(clip_ratio / maximum), F(2.0**-126))
        factor = F(1) / scales
    scaled = (groups * factor[..., None]).reshape(rotated.shape)
    assert scaled.dtype == F
    if name in ("int8", "int4"):
        return nearest_integer(scaled, {"int8": 127, "int4": 7}[name]).view(np.uint8), scales
    kind = {"fp8_e4m3": "e4m3", "fp8_e5m2": "e5m2", "mxfp8": "e4m3", "mxfp4": "e2m1", "nvfp4": "e2m1"}[name]
    return nearest_float(scaled, kind), scales
