"""What this project sets in megatron-core: the device, process groups, configurations, patches, the optimizer.

Other rooms read core's `parallel_state`, and nothing outside this room sets it. Whoever imports `megatron.core` imports
`megatron_patch.core.device` first.
"""
