"""Accuracy of models whose attention runs in low precision, with and without rotation. How to use it: ``docs/evaluation.md``."""
