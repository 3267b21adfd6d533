// Which instructions this processor (and its operating system) can run.
#pragma once

#include <string>

namespace marcoro::cpu {

struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512vbmi = false;
  bool avx512bf16 = false;
};

// All false where this is not an x86-64 processor.
CpuFeatures DetectCpuFeatures();

// The names of the features that a kernel family needs and `features` lacks, separated by ", ";
// empty if it can run.
std::string MissingForAvx2(const CpuFeatures& features);
std::string MissingForAvx512(const CpuFeatures& features);

}  // namespace marcoro::cpu
