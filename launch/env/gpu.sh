# shellcheck shell=bash
# For all NVIDIA GPUs; h100.sh, h200.sh and a100.sh read it.

flags=(
  # Starts a gather of weights long before they are needed, so that it runs beside the computation.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # Within the scan over layers, gathers the weights of the next layer while this one computes.
  --xla_gpu_enable_pipelined_all_gather=true
  # The same for gradients in the backward pass.
  --xla_gpu_enable_pipelined_reduce_scatter=true
)
export XLA_FLAGS="${XLA_FLAGS:-} ${flags[*]}"

# One queue from the host to the GPU keeps collectives and kernels in the order that the scheduler above has planned.
export CUDA_DEVICE_MAX_CONNECTIONS=1
# Errors of the network are printed, and nothing else of NCCL.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
