"""What this project sets in megatron-core: the device, process groups, configurations, patches, the optimizer.

Other rooms read core's `parallel_state`, and only this room sets it. Every module that imports `megatron.core` imports
`megatron_patch.core.device` first, because on a machine without a GPU that one must prepare torch before core is read.
"""
