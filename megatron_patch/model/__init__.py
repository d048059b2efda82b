"""LLaMA-2 as a megatron-core spec, made of core's parts and this project's kernels."""
