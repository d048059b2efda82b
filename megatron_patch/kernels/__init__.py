"""Fused kernels for LLaMA training, one file each: a PyTorch reference, Triton kernels, an autograd function, a public function.

Three files are something else: `products` chooses cuBLASLt's algorithms, `attention_backends` and `attention` call libraries.
"""

from ._dispatch import prefer

__all__ = ["prefer"]
