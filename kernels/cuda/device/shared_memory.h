// A block's shared memory. All of it is dynamic (its size is part of the launch) and kernels lay it
// out themselves. On the GPU a view is a pointer; the emulator checks bounds, reports what was read
// or overwritten without a barrier after another thread's access, and fills the memory with NaN
// before a block begins.
#pragma once

#include "kernels/cuda/device/platform.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT
MARCORO_DEVICE char* SharedMemory() { return simt::SharedMemory(); }
#else
MARCORO_DEVICE char* SharedMemory() {
  extern __shared__ __align__(1024) char marcoro_shared_memory[];
  return marcoro_shared_memory;
}
// As instructions of shared memory take it.
MARCORO_DEVICE uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

// `count` elements of T from a byte offset on, which is a multiple of T's size (of 16 where vectors
// of 16 bytes are accessed). The memory begins at a multiple of 1024.
template <typename T>
class SharedArray {
 public:
  MARCORO_DEVICE SharedArray(int byte_offset, int count, SourceLocation here = MARCORO_HERE)
      : data_(reinterpret_cast<T*>(SharedMemory() + byte_offset)) {
#ifdef MARCORO_SIMT
    count_ = count;
    simt::CheckShared(data_, static_cast<size_t>(count) * sizeof(T), alignof(T), here);
#endif
  }

  MARCORO_DEVICE T Load(int i, SourceLocation here = MARCORO_HERE) const {
    NoteRead(i, sizeof(T), here);
    return data_[i];
  }
  MARCORO_DEVICE void Store(int i, T value, SourceLocation here = MARCORO_HERE) const {
    NoteWrite(i, sizeof(T), here);
    data_[i] = value;
  }
  // sizeof(V) bytes from element i on, in one access; aligned to sizeof(V).
  template <typename V>
  MARCORO_DEVICE V LoadAs(int i, SourceLocation here = MARCORO_HERE) const {
    NoteRead(i, sizeof(V), here);
    return *reinterpret_cast<const V*>(data_ + i);
  }
  template <typename V>
  MARCORO_DEVICE void StoreAs(int i, V value, SourceLocation here = MARCORO_HERE) const {
    NoteWrite(i, sizeof(V), here);
    *reinterpret_cast<V*>(data_ + i) = value;
  }
  // For wrappers that take addresses (asynchronous copies, matrix loads): they note accesses
  // themselves.
  MARCORO_DEVICE T* Address(int i) const { return data_ + i; }
#ifdef MARCORO_SIMT
  int count() const { return count_; }
#endif

 private:
#ifdef MARCORO_SIMT
  void NoteRead(int i, size_t bytes, SourceLocation here) const {
    simt::CheckIndex(data_, i, bytes, sizeof(T), count_, here);
    simt::NoteSharedRead(data_ + i, bytes, here);
  }
  void NoteWrite(int i, size_t bytes, SourceLocation here) const {
    simt::CheckIndex(data_, i, bytes, sizeof(T), count_, here);
    simt::NoteSharedWrite(data_ + i, bytes, here);
  }
  int count_;
#else
  MARCORO_DEVICE static void NoteRead(int, size_t, SourceLocation) {}
  MARCORO_DEVICE static void NoteWrite(int, size_t, SourceLocation) {}
#endif
  T* data_;
};

}  // namespace marcoro::cuda
