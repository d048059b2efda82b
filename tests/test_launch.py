"""What the training processes find in their environment."""

from __future__ import annotations

from megatron_patch.launch import worker_environment


def test_what_nccl_and_cuda_need_is_set_unless_the_user_did(monkeypatch):
    for name in ("NCCL_GRAPH_REGISTER", "NCCL_LAUNCH_ORDER_IMPLICIT", "CUDA_DEVICE_MAX_CONNECTIONS"):
        monkeypatch.delenv(name, raising=False)
    alone = worker_environment(None, [], tensor_parallel=False)
    assert alone["NCCL_GRAPH_REGISTER"] == "0" and alone["NCCL_LAUNCH_ORDER_IMPLICIT"] == "1"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in alone
    assert worker_environment(None, [], tensor_parallel=True)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    monkeypatch.setenv("NCCL_GRAPH_REGISTER", "1")
    assert worker_environment(None, [], tensor_parallel=False)["NCCL_GRAPH_REGISTER"] == "1"
