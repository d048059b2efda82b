"""Run by torchrun: load a converted checkpoint at TP and PP, and save the logits [B, S, V] of given tokens."""

from __future__ import annotations

import sys


def main(checkpoint: str, tokens_file: str, target: str, tp: int, pp: int, fused: bool) -> None:
    import torch

    from megatron_patch.checkpoint.initial_weights import load_weights
    from megatron_patch.config import one_process_config
    from megatron_patch.core import parallel
    from megatron_patch.core.patches import apply_patches
    from megatron_patch.llama.model_config import read_hf_config
    from megatron_patch.model.build import build_model, choose_backend

    tokens = torch.load(tokens_file, weights_only=True)
    rows, length = tokens.shape
    config = one_process_config(
        read_hf_config(checkpoint), length, load=checkpoint, tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
        use_flash_attn=fused, micro_batch_size=rows, global_batch_size=rows,
    )  # fmt: skip
    layout = parallel.start(config)
    apply_patches()
    model = build_model(config, layout, choose_backend(config, layout)[0])
    load_weights(checkpoint, model)
    logits = forward(model, config, tokens)
    if logits is not None:
        torch.save(logits, target)
    parallel.stop()


def forward(model, config, tokens):
    """Logits with all of the vocabulary, on the first tensor-parallel rank of the last stage; None on the others."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    kept = []

    def step(_, stage):
        output = stage(tokens)

        def keep(logits):
            kept.append(gather_from_tensor_model_parallel_region(logits.contiguous()))
            return logits.sum(), torch.tensor(1), {}

        return output, keep

    with torch.no_grad():
        get_forward_backward_func()(
            forward_step_func=step, data_iterator=iter([None]), model=[model], num_microbatches=1,
            seq_length=config.seq_length, micro_batch_size=config.micro_batch_size, forward_only=True,
        )  # fmt: skip
    is_first = parallel_state.get_tensor_model_parallel_rank() == 0
    return kept[0] if parallel_state.is_pipeline_last_stage() and is_first else None


if __name__ == "__main__":
    checkpoint, tokens_file, target, tp, pp, fused = sys.argv[1:]
    main(checkpoint, tokens_file, target, int(tp), int(pp), fused == "fused")
