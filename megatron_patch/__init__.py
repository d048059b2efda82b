"""LLaMA-2 training at Megatron speed behind PAI-Megatron-Patch's shell commands.

Importing this package imports no torch.
"""

__version__ = "0.1.0"
