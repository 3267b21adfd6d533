#define MARCORO_ISA portable
#define MARCORO_ISA_NAME "portable"
#include "worker/weights/row_kernels-inl.h"
