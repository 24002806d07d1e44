// What this machine does at most: bytes read from memory and operations in registers and first-level cache, by all
// threads together. Prints JSON; compiled with -march=native by limits.py.
//
//     limits THREADS MEBIBYTES SECONDS
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Floats __attribute__((vector_size(kBytes)));
constexpr int kChains = 12;
// Keeps the compiler from knowing what is in a register.
#if defined(__aarch64__)
#define FORGET(x) asm volatile("" : "+w"(x))
#else
#define FORGET(x) asm volatile("" : "+v"(x))
#endif

volatile float sink;

bool alone = false;

// Of the processor with one thread, so that other work on the machine counts little; by the wall with more.
double seconds() {
  if (alone) return double(std::clock()) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Adds, so that the compiler may not leave the reading out.
void read(const float* memory, int64_t count) {
  const Floats* from = reinterpret_cast<const Floats*>(memory);
  Floats sums[8] = {};
  for (int64_t i = 0; i + 8 <= count * 4 / kBytes; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += from[i + j];
  for (int j = 1; j < 8; ++j) sums[0] += sums[j];
  sink = sums[0][0];
}

// Each of these does `rounds` rounds and returns the operations of one, two for a multiply-add.
double multiply_floats(int64_t rounds) {
  Floats sums[kChains], factor, term;
  for (int j = 0; j < kBytes / 4; ++j) factor[j] = 0.999f, term[j] = 0.001f * float(j);
  for (int i = 0; i < kChains; ++i) sums[i] = term;
  for (int64_t r = 0; r < rounds; ++r) {
    FORGET(factor);
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
  }
  for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
  sink = sums[0][0];
  return 2.0 * kChains * kBytes / 4;
}

#if defined(__AMX_TILE__)
struct alignas(64) Tiles {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t columns[16] = {};
  uint8_t rows[16] = {};
};

bool permitted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// Four sums of tiles, their operands read from the first-level cache every time.
template <bool Integers>
double multiply_tiles(int64_t rounds) {
  alignas(64) static thread_local uint8_t memory[4][1024];
  Tiles tiles;
  for (int i = 0; i < 8; ++i) tiles.columns[i] = 64, tiles.rows[i] = 16;
  _tile_loadconfig(&tiles);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_loadd(4, memory[0], 64);
    _tile_loadd(5, memory[1], 64);
    _tile_loadd(6, memory[2], 64);
    _tile_loadd(7, memory[3], 64);
    if constexpr (Integers) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, memory[0], 64);
  sink = float(memory[0][0]);
  _tile_release();
  return 4 * 2.0 * 16 * 16 * (Integers ? 64 : 32);
}
#endif

#if defined(__AVX512BF16__)
double multiply_halves(int64_t rounds) {
  __m512 sums[kChains];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  __m512bh a = _mm512_cvtne2ps_pbh(sums[0], sums[0]), b = a;
  for (int64_t r = 0; r < rounds; ++r) {
    FORGET(a);
    FORGET(b);
    for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, a, b);
  }
  for (int i = 1; i < kChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  sink = _mm512_reduce_add_ps(sums[0]);
  return 2.0 * kChains * 32;
}
#endif

#if defined(__AVX512VNNI__)
double multiply_bytes(int64_t rounds) {
  __m512i sums[kChains], a = _mm512_set1_epi8(1), b = a;
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t r = 0; r < rounds; ++r) {
    FORGET(a);
    FORGET(b);
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  }
  for (int i = 1; i < kChains; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  sink = float(_mm512_reduce_add_epi32(sums[0]));
  return 2.0 * kChains * 64;
}
#elif defined(__AVX2__)
// Products of unsigned and signed bytes, added in pairs of pairs.
double multiply_bytes(int64_t rounds) {
  constexpr int chains = 8;
  __m256i sums[chains], a = _mm256_set1_epi8(1), b = a, ones = _mm256_set1_epi16(1);
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t r = 0; r < rounds; ++r)
    for (auto& sum : sums) {
      FORGET(a);  // or all the products would be one
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  for (int i = 1; i < chains; ++i) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
  sink = float(_mm256_extract_epi32(sums[0], 0));
  return 2.0 * chains * 32;
}
#elif defined(__ARM_FEATURE_DOTPROD)
double multiply_bytes(int64_t rounds) {
  int32x4_t sums[kChains] = {};
  int8x16_t a = vdupq_n_s8(1), b = a;
  for (int64_t r = 0; r < rounds; ++r) {
    FORGET(a);
    FORGET(b);
    for (auto& sum : sums) sum = vdotq_s32(sum, a, b);
  }
  for (int i = 1; i < kChains; ++i) sums[0] = vaddq_s32(sums[0], sums[i]);
  sink = float(vgetq_lane_s32(sums[0], 0));
  return 2.0 * kChains * 16;
}
#else
double multiply_bytes(int64_t rounds) { return multiply_floats(rounds); }
#endif

double together(int threads, const std::function<void(int)>& work) {
  const double started = seconds();
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (auto& other : others) other.join();
  return seconds() - started;
}

// The best of several tries: what other programs disturbed least.
double rate(int threads, double limit, double (*work)(int64_t)) {
  double best = 0;
  int64_t rounds = 1000;
  for (const double end = seconds() + limit; seconds() < end;) {
    double operations = 0;
    const double took = together(threads, [&](int who) {
      const double each = work(rounds);
      if (who == 0) operations = each;
    });
    best = std::max(best, operations * double(rounds) * threads / took);
    if (took < limit / 8) rounds *= 4;
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const int threads = std::atoi(argv[1]);
  const int64_t each = (int64_t(std::atoi(argv[2])) << 20) / threads / 4096 * 4096;
  const double limit = std::atof(argv[3]);
  alone = threads == 1;
  std::vector<float*> memory(threads);
  together(threads, [&](int who) {  // each thread's own pages
    memory[who] = static_cast<float*>(std::aligned_alloc(4096, size_t(each)));
    if (memory[who]) std::memset(memory[who], 0, size_t(each));
  });
  for (float* part : memory)
    if (!part) return 3;
  double read_rate = 0;
  for (const double end = seconds() + limit; seconds() < end;) {
    const double took = together(threads, [&](int who) { read(memory[who], each / 4); });
    read_rate = std::max(read_rate, double(each) * threads / took);
  }
  const double floats = rate(threads, limit, multiply_floats);
  double halves = floats, bytes = rate(threads, limit, multiply_bytes);
#if defined(__AVX512BF16__)
  halves = std::max(halves, rate(threads, limit, multiply_halves));
#endif
#if defined(__AMX_TILE__)
  if (permitted()) {
    halves = std::max(halves, rate(threads, limit, multiply_tiles<false>));
    bytes = std::max(bytes, rate(threads, limit, multiply_tiles<true>));
  }
#endif
  std::printf("{\"read\": %.4g, \"float32\": %.4g, \"bf16\": %.4g, \"int8\": %.4g}\n", read_rate, floats, halves,
              std::max(bytes, floats));
}
