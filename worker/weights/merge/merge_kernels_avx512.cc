#define MARCORO_ISA avx512
#define MARCORO_ISA_NAME "avx512"
#include "worker/weights/merge/merge_kernels-inl.h"
