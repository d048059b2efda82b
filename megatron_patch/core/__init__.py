"""The only door to megatron-core's global state. Import `megatron_patch.core.device` before any `megatron.core` module."""
