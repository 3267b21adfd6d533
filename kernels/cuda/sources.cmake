# The sources of the CUDA backend, from the repository's root: compiled for GPUs by CMakeLists.txt beside this file, and
# for the emulator by tests/kernels/cuda.
set(marcoro_cuda_kernels
  kernels/cuda/all_reduce.cu
  kernels/cuda/all_reduce_rms_norm.cu
  kernels/cuda/architecture.cu
  kernels/cuda/attention.cu
  kernels/cuda/attention_merge.cu
  kernels/cuda/attention_split.cu
  kernels/cuda/attention_walk.cu
  kernels/cuda/embed.cu
  kernels/cuda/gather_rows.cu
  kernels/cuda/logits.cu
  kernels/cuda/matmul.cu
  kernels/cuda/matmul_few_tokens.cu
  kernels/cuda/matmul_many_tokens.cu
  kernels/cuda/matmul_pack.cu
  kernels/cuda/matmul_parts.cu
  kernels/cuda/matmul_warpgroups.cu
  kernels/cuda/rms_norm.cu
  kernels/cuda/rope.cu
  kernels/cuda/sampling.cu
  kernels/cuda/swiglu.cu)
set(marcoro_cuda_host_sources
  kernels/cuda/cuda_backend.cc
  kernels/cuda/device_memory.cc
  kernels/cuda/matmul_probe.cc
  kernels/cuda/step_upload.cc)
