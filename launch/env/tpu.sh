# shellcheck shell=bash
# For Cloud TPU.

flags=(
  # Gathers of weights become asynchronous, so that they can run beside the computation.
  --xla_enable_async_all_gather=true
  # A collective runs inside of the matrix products next to it,
  --xla_tpu_enable_async_collective_fusion=true
  # gathers of weights too,
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  # spread over several of them where one is too short.
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  # The core computes while a collective is on its way.
  --xla_tpu_overlap_compute_collective_tc=true
)
export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-} ${flags[*]}"
