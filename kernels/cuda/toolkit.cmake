# Enables CUDA with the toolkit of $CUDACXX or $CUDA_HOME, else what deploy/install.sh --cuda put below build/tools, else the
# system's. Architectures: -DCMAKE_CUDA_ARCHITECTURES=…, or those below as far as the compiler knows them.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(MARCORO_NVCC nvcc
    HINTS $ENV{CUDA_HOME}/bin ${PROJECT_SOURCE_DIR}/build/tools/cuda/bin /usr/local/cuda/bin)
  if(NOT MARCORO_NVCC)
    message(FATAL_ERROR "MARCORO_CUDA needs the CUDA toolkit and found no nvcc: run deploy/install.sh --cuda, or set CUDA_HOME")
  endif()
  set(CMAKE_CUDA_COMPILER ${MARCORO_NVCC})
endif()
if(MARCORO_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${MARCORO_CCACHE})
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(compiler ${CMAKE_CUDA_COMPILER})
  if(NOT compiler)
    set(compiler $ENV{CUDACXX})
  endif()
  execute_process(COMMAND ${compiler} --list-gpu-arch OUTPUT_VARIABLE known OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${compiler} does not run")
  endif()
  # 8.0 also as intermediate code, for GPUs that come later; the others use what only they have.
  set(CMAKE_CUDA_ARCHITECTURES 80 90a-real)
  if(known MATCHES "compute_100")
    list(APPEND CMAKE_CUDA_ARCHITECTURES 100a-real)
  endif()
endif()
enable_language(CUDA)
# The find module asks for the toolkit's root where the compiler is not the system's.
get_filename_component(toolkit_bin ${CMAKE_CUDA_COMPILER} DIRECTORY)
get_filename_component(CUDAToolkit_ROOT ${toolkit_bin} DIRECTORY)

# What all CUDA sources are compiled with. Not a compile feature: CMake 3.25 knows no C++20 of nvcc.
add_library(marcoro_cuda_options INTERFACE)
target_compile_options(marcoro_cuda_options INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --expt-relaxed-constexpr>
  "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${MARCORO_WERROR}>>:SHELL:-Werror all-warnings>")
