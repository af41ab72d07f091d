# shellcheck shell=bash
# shellcheck source=launch/env/gpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"

# About 6 of its 80 GB remain for NCCL, cuDNN and the CUDA context; JAX by itself would leave a quarter.
export XLA_PYTHON_CLIENT_MEM_FRACTION=.92
