// Memory that a program reuses from step to step.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

namespace armillary {

// Aligned memory that grows and never shrinks; what it held is lost when it grows.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // At least `bytes` bytes, aligned to 64. Throws std::bad_alloc.
  uint8_t* take(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      data_ = nullptr;
      size_ = 0;
      const size_t rounded = (bytes + 4095) / 4096 * 4096;
      data_ = static_cast<uint8_t*>(std::aligned_alloc(4096, rounded));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = rounded;
    }
    return data_;
  }
  float* floats(int64_t count) { return reinterpret_cast<float*>(take(size_t(count) * sizeof(float))); }
  int64_t* ints(int64_t count) { return reinterpret_cast<int64_t*>(take(size_t(count) * sizeof(int64_t))); }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace armillary
