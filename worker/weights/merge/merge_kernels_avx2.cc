#define MARCORO_ISA avx2
#define MARCORO_ISA_NAME "avx2"
#include "worker/weights/merge/merge_kernels-inl.h"
