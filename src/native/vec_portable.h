// Vectors of float32 in the vector extensions that GCC and Clang share: four lanes, which every target has registers for.
// Sixteen where another path is emulated for tests.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(ARMILLARY_PORTABLE_LANES)
#define ARMILLARY_PORTABLE_LANES 4
#endif

namespace armillary {
namespace ARMILLARY_PATH {

struct Vec {
  static constexpr int N = ARMILLARY_PORTABLE_LANES;
  typedef float Lanes __attribute__((vector_size(N * 4)));
  typedef int32_t Words __attribute__((vector_size(N * 4)));
  typedef uint16_t Halves __attribute__((vector_size(N * 2)));
  typedef int8_t Bytes __attribute__((vector_size(N)));
  Lanes lane;

  static Vec zero() { return {Lanes{}}; }
  static Vec set(float x) { return {Lanes{} + x}; }
  static Vec load(const float* p) {
    Vec r;
    std::memcpy(&r.lane, p, sizeof r.lane);
    return r;
  }
  // The first `count` (0 to N) elements; other lanes are zero.
  static Vec load(const float* p, int count) {
    Vec r = zero();
    std::memcpy(&r.lane, p, size_t(count) * sizeof(float));
    return r;
  }
  void store(float* p) const { std::memcpy(p, &lane, sizeof lane); }
  void store(float* p, int count) const { std::memcpy(p, &lane, size_t(count) * sizeof(float)); }
  static Vec load_bf16(const uint16_t* p) {
    Halves narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    const Words wide = __builtin_convertvector(narrow, Words) << 16;
    return {as_lanes(wide)};
  }
  // As numbers.h has it, for all lanes at once.
  static Vec from_f16(Halves narrow) {
    const Words wide = __builtin_convertvector(narrow, Words);
    const Words rest = wide & 0x7fff, sign = (wide & 0x8000) << 16;
    const Words normal = (rest << 13) + 0x38000000 + ((rest >= 0x7c00) & 0x38000000);  // NaN and infinity once more
    const Lanes subnormal = __builtin_convertvector(rest, Lanes) * 0x1p-24f;
    Words bits;
    std::memcpy(&bits, &subnormal, sizeof bits);
    const Words small = rest < 0x400;
    return {as_lanes((small & bits) | (~small & normal) | sign)};
  }
  static Vec load_i8(const int8_t* p) {
    Bytes narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    return {__builtin_convertvector(narrow, Lanes)};
  }
  friend Vec operator+(Vec a, Vec b) { return {a.lane + b.lane}; }
  friend Vec operator-(Vec a, Vec b) { return {a.lane - b.lane}; }
  friend Vec operator*(Vec a, Vec b) { return {a.lane * b.lane}; }
  friend Vec operator/(Vec a, Vec b) { return {a.lane / b.lane}; }
  // a * b + c. Two roundings on this path, one on the others and on what stands in for them.
  static Vec fma(Vec a, Vec b, Vec c) {
#if defined(ARMILLARY_EMULATED)
    for (int i = 0; i < N; ++i) c.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
    return c;
#else
    return {a.lane * b.lane + c.lane};
#endif
  }
  // As the instruction of x86 has it: b where either is NaN.
  static Vec max(Vec a, Vec b) { return {select(a.lane > b.lane, a.lane, b.lane)}; }
  static Vec min(Vec a, Vec b) { return {select(a.lane < b.lane, a.lane, b.lane)}; }
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
    const Words exponent = (__builtin_convertvector(a.lane, Words) + 127) << 23;
    return {as_lanes(exponent)};
  }
  // Lane by lane a < b ? yes : no. False where either is NaN.
  static Vec where_less(Vec a, Vec b, Vec yes, Vec no) { return {select(a.lane < b.lane, yes.lane, no.lane)}; }

 private:
  static Lanes as_lanes(Words words) {
    Lanes lanes;
    std::memcpy(&lanes, &words, sizeof lanes);
    return lanes;
  }
  static Lanes select(Words condition, Lanes yes, Lanes no) {
    Words y, n;
    std::memcpy(&y, &yes, sizeof y);
    std::memcpy(&n, &no, sizeof n);
    return as_lanes((condition & y) | (~condition & n));
  }
};

}  // namespace ARMILLARY_PATH
}  // namespace armillary
