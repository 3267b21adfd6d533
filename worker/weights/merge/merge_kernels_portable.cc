#define MARCORO_ISA portable
#define MARCORO_ISA_NAME "portable"
#include "worker/weights/merge/merge_kernels-inl.h"
