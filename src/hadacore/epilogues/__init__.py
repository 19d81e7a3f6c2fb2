"""Epilogues: what happens to the transformed fp32 values of a lane before they are stored."""
