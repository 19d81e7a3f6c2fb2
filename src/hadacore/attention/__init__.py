"""Attention in FP8 and other low precisions, with rotated queries, keys and values. How to use it: ``docs/attention.md``."""

from hadacore.attention.engines import EmulatedEngine, Engine, engines
from hadacore.attention.flash_attention import VllmEngine
from hadacore.attention.functional import AttentionPlan, plan_attention, quantized_attention
from hadacore.attention.recipes import RECIPES, AttentionRecipe

__all__ = [
    "RECIPES",
    "AttentionPlan",
    "AttentionRecipe",
    "EmulatedEngine",
    "Engine",
    "VllmEngine",
    "engines",
    "plan_attention",
    "quantized_attention",
]
