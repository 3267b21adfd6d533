// Barriers in shared memory that count arrivals and bytes of bulk copies (sm_90 and newer). A phase
// ends when all expected arrivals and all expected bytes have come; then the next one begins. Who
// waits for a phase sees what those who arrived did before, and what the copies wrote.
#pragma once

#include "kernels/cuda/device/shared_memory.h"

namespace marcoro::cuda {

class Mbarrier {
 public:
  static constexpr int kBytes = 8;  // of shared memory; the offset is a multiple of it

  MARCORO_DEVICE explicit Mbarrier(int byte_offset, SourceLocation here = MARCORO_HERE)
      : address_(SharedMemory() + byte_offset) {
#ifdef MARCORO_SIMT
    simt::CheckShared(address_, kBytes, kBytes, here);
#endif
  }
  MARCORO_DEVICE void* address() const { return address_; }

#ifdef MARCORO_SIMT

  // By one thread, before all else; then PublishMbarriers by the same thread and a barrier.
  // `arrivals` of a phase: 1 to 2^20 - 1.
  MARCORO_DEVICE void Initialize(int arrivals, SourceLocation here = MARCORO_HERE) const {
    simt::InitializeMbarrier(address_, arrivals, here);
  }
  MARCORO_DEVICE void Arrive(SourceLocation here = MARCORO_HERE) const {
    simt::ArriveMbarrier(address_, /*bytes=*/0, here);
  }
  // Arrives, and makes the phase expect `bytes` more from copies.
  MARCORO_DEVICE void ArriveAndExpect(int bytes, SourceLocation here = MARCORO_HERE) const {
    simt::ArriveMbarrier(address_, bytes, here);
  }
  // Arrives at the barrier that lies at the same place in another block of the cluster.
  MARCORO_DEVICE void ArriveAt(int block_rank, SourceLocation here = MARCORO_HERE) const {
    simt::ArriveMbarrier(simt::SharedOfBlock(address_, block_rank, here), /*bytes=*/0, here);
  }
  // Returns when the phase of this parity has ended: 0 for the first phase, 1 for the second, and
  // so on. The caller is at most one phase behind. Parity 1 returns at once during the first phase.
  MARCORO_DEVICE void Wait(uint32_t parity, SourceLocation here = MARCORO_HERE) const {
    simt::WaitMbarrier(address_, parity, here);
  }
  // The same; also sees what threads of other blocks did before ArriveAt.
  MARCORO_DEVICE void WaitForCluster(uint32_t parity, SourceLocation here = MARCORO_HERE) const {
    simt::WaitMbarrier(address_, parity, here);
  }

#else

  MARCORO_DEVICE void Initialize(int arrivals, SourceLocation = {}) const {
    MARCORO_PTX_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(address_)),
                     "r"(arrivals) : "memory");
  }
  MARCORO_DEVICE void Arrive(SourceLocation = {}) const {
    MARCORO_PTX_SM90("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(
        SharedAddress(address_)) : "memory");
  }
  MARCORO_DEVICE void ArriveAndExpect(int bytes, SourceLocation = {}) const {
    MARCORO_PTX_SM90("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                         SharedAddress(address_)),
                     "r"(bytes) : "memory");
  }
  MARCORO_DEVICE void ArriveAt(int block_rank, SourceLocation = {}) const {
    MARCORO_PTX_SM90(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(SharedAddress(address_)),
        "r"(block_rank) : "memory");
  }
  MARCORO_DEVICE void Wait(uint32_t parity, SourceLocation = {}) const {
    uint32_t ended = 1;
    do {  // suspends the thread for a while before it says no
      MARCORO_PTX_SM90(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}" : "=r"(ended) : "r"(SharedAddress(address_)),
          "r"(parity) : "memory");
    } while (ended == 0);
  }
  MARCORO_DEVICE void WaitForCluster(uint32_t parity, SourceLocation = {}) const {
    uint32_t ended = 1;
    do {
      MARCORO_PTX_SM90(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}" : "=r"(ended) : "r"(SharedAddress(address_)),
          "r"(parity) : "memory");
    } while (ended == 0);
  }

#endif

 private:
  char* address_;
};

#ifdef MARCORO_SIMT

// After this thread's Initialize: other blocks of the cluster and bulk copies see the barriers too,
// once a barrier (the cluster's, if there is one) lies behind.
MARCORO_DEVICE void PublishMbarriers() { simt::PublishMbarriers(); }

#else

MARCORO_DEVICE void PublishMbarriers() {
  MARCORO_PTX_SM90("fence.mbarrier_init.release.cluster;" :: : "memory");
  MARCORO_PTX_SM90("fence.proxy.async.shared::cta;" :: : "memory");
}

#endif

}  // namespace marcoro::cuda
