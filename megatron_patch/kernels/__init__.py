"""Fused kernels for LLaMA training: one file each, with a PyTorch reference, Triton kernels and an autograd
function."""

from ._dispatch import prefer

__all__ = ["prefer"]
