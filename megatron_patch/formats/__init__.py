"""Files of weights and what stands beside them; nothing here knows Megatron."""
