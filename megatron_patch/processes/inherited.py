"""Names of environment variables by which the launcher tells torchrun, and torchrun its ranks. Imports no torch."""

from __future__ import annotations

# How nodes meet, as JSON: {"minutes": …, "output": OUTPUT_BASEPATH, "local": --local-output, "inputs": fingerprints of
# what they read}.
MEETING = "MEGATRON_PATCH_MEETING"
LOCK = "MEGATRON_PATCH_RUN_LOCK"  # the file of the checkpoint folder's lock, which torchrun keeps
GRACE = "MEGATRON_PATCH_EXIT_GRACE"  # --exit-grace-seconds of a training run
