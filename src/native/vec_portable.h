// Vectors of float32 in plain C++: eight lanes, which compilers turn into whatever the target has.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace armillary {
namespace ARMILLARY_PATH {

struct Vec {
  static constexpr int N = 8;
  float lane[N];

  static Vec zero() { return set(0.f); }
  static Vec set(float x) {
    Vec r;
    for (int i = 0; i < N; ++i) r.lane[i] = x;
    return r;
  }
  static Vec load(const float* p) {
    Vec r;
    std::memcpy(r.lane, p, sizeof r.lane);
    return r;
  }
  // The first `count` (0 to N) elements; other lanes are zero.
  static Vec load(const float* p, int count) {
    Vec r = zero();
    for (int i = 0; i < count; ++i) r.lane[i] = p[i];
    return r;
  }
  void store(float* p) const { std::memcpy(p, lane, sizeof lane); }
  void store(float* p, int count) const {
    for (int i = 0; i < count; ++i) p[i] = lane[i];
  }
  static Vec load_bf16(const uint16_t* p) {
    Vec r;
    for (int i = 0; i < N; ++i) {
      const uint32_t bits = uint32_t(p[i]) << 16;
      std::memcpy(&r.lane[i], &bits, 4);
    }
    return r;
  }
  static Vec load_i8(const int8_t* p) {
    Vec r;
    for (int i = 0; i < N; ++i) r.lane[i] = float(p[i]);
    return r;
  }
  friend Vec operator+(Vec a, Vec b) {
    for (int i = 0; i < N; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  friend Vec operator-(Vec a, Vec b) {
    for (int i = 0; i < N; ++i) a.lane[i] -= b.lane[i];
    return a;
  }
  friend Vec operator*(Vec a, Vec b) {
    for (int i = 0; i < N; ++i) a.lane[i] *= b.lane[i];
    return a;
  }
  friend Vec operator/(Vec a, Vec b) {
    for (int i = 0; i < N; ++i) a.lane[i] /= b.lane[i];
    return a;
  }
  // a * b + c. Two roundings on this path, one on the others.
  static Vec fma(Vec a, Vec b, Vec c) {
    for (int i = 0; i < N; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }
  // As the instruction of x86 has it: b where either is NaN.
  static Vec max(Vec a, Vec b) {
    for (int i = 0; i < N; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  static Vec min(Vec a, Vec b) {
    for (int i = 0; i < N; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  static Vec round(Vec a) {
    for (int i = 0; i < N; ++i) a.lane[i] = std::nearbyint(a.lane[i]);
    return a;
  }
  static Vec sqrt(Vec a) {
    for (int i = 0; i < N; ++i) a.lane[i] = std::sqrt(a.lane[i]);
    return a;
  }
  // 2^a for whole a from -126 to 127.
  static Vec power_of_two(Vec a) {
    for (int i = 0; i < N; ++i) {
      const int32_t bits = (int32_t(a.lane[i]) + 127) << 23;
      std::memcpy(&a.lane[i], &bits, 4);
    }
    return a;
  }
  // Lane by lane a < b ? yes : no. False where either is NaN.
  static Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    for (int i = 0; i < N; ++i) no.lane[i] = a.lane[i] < b.lane[i] ? yes.lane[i] : no.lane[i];
    return no;
  }
};

}  // namespace ARMILLARY_PATH
}  // namespace armillary
