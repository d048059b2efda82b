"""Fused kernels for LLaMA training.

One file each has a PyTorch reference, Triton kernels, an autograd function and a public function. Three subjects have
no kernel here: `products` chooses among cuBLASLt's algorithms, `grad_accumulation` calls it, and `attention` calls the
library that `attention_backends` has chosen.

Shapes: S sequence, B batch, H hidden, N heads, G groups of keys and values, D head size, F width of the MLP, V rows of
the vocabulary. Activations are [S, B, H], as Megatron's are.
"""

from ._dispatch import prefer

__all__ = ["prefer"]
