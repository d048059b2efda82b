# An image for PAI-DSW, PAI-DLC and any machine with NVIDIA's container toolkit. Everything is installed by pip; nothing is compiled.
#   docker build -t megatron-patch .
#   docker run --rm -it --gpus all --ipc=host -v /data/workspace:/mnt/workspace -v /data/llama2:/mnt/data:ro megatron-patch
# torch's wheels bring CUDA's libraries, cuDNN and NCCL; the base image only tells the container toolkit what they need of the driver.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# gcc and Python's headers: Triton builds its launcher when a kernel first runs. libibverbs and librdmacm: NCCL over RDMA.
# The distribution's versions change with its security updates, so they are not pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates curl gcc git ibverbs-providers libc6-dev libibverbs1 librdmacm1t64 python3-dev python3-venv wget \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's own Python takes no packages from pip.
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# torch first and by itself: this layer is large and changes rarely. The argument has its version.
ARG TORCH=torch==2.13.0
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "$TORCH"

WORKDIR /opt/PAI-Megatron-Patch
COPY LICENSE NOTICE README.md pyproject.toml setup.py ./
COPY examples examples
COPY megatron_patch megatron_patch
COPY toolkits toolkits
# EXTRAS=demo,dlc,flash adds flash-attn 4, for Hopper GPUs. pyproject.toml has the versions.
ARG EXTRAS=demo,dlc
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[$EXTRAS]"

# DSW and DLC mount the workspace and the data here. Without a mount, the documented paths lead to the image's own copy.
RUN mkdir -p /mnt/data /mnt/workspace && ln -s /opt/PAI-Megatron-Patch /mnt/workspace/PAI-Megatron-Patch
ENV WORK_DIR=/mnt/workspace DATA_DIR=/mnt/data
WORKDIR /mnt/workspace
CMD ["/bin/bash"]
