# The CPU matmul: threads and memory, plus one file for each instruction set, compiled with its own
# flags. Which of them may run is decided at run time by the backend.
add_library(marcoro_cpu_matmul STATIC
  matmul_avx2.cc
  matmul_avx512.cc
  matmul_driver.cc
  memory.cc
  thread_pool.cc)
target_link_libraries(marcoro_cpu_matmul
  PUBLIC marcoro_options absl::function_ref absl::status absl::statusor absl::span
  PRIVATE absl::strings Threads::Threads)
# No contraction: a product that is fused with the next sum only in some tiles would change bits.
set_source_files_properties(matmul_avx2.cc PROPERTIES
  COMPILE_OPTIONS "-ffp-contract=off;-mavx2;-mfma;-mf16c")
set_source_files_properties(matmul_avx512.cc PROPERTIES
  COMPILE_OPTIONS
  "-ffp-contract=off;-mavx512f;-mavx512bw;-mavx512vl;-mavx512vbmi;-mavx512bf16;-mfma;-mf16c")
