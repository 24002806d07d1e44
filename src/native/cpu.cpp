#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace armillary {

const char* name(Path path) {
  switch (path) {
    case Path::avx2: return "avx2";
    case Path::avx512_plain: return "avx512_plain";
    case Path::avx512: return "avx512";
    case Path::avx512_bf16: return "avx512_bf16";
    case Path::amx: return "amx";
    default: return "portable";
  }
}

namespace {

#if defined(__x86_64__)

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers ask(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

// Which register states the operating system saves: without it an instruction set must not be used even if it is there.
uint64_t saved_states() {
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
}

bool allow_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023;
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

}  // namespace

std::vector<Path> available_paths() {
  std::vector<Path> paths = {Path::portable};
#if defined(__x86_64__)
  const Registers basic = ask(1);
  if (!bit(basic.c, 27)) return paths;  // no OSXSAVE
  const uint64_t states = saved_states();
  const Registers seven = ask(7);
  const bool wide = (states & 0x6) == 0x6;
  const bool avx2 = wide && bit(basic.c, 12) && bit(basic.c, 29) && bit(seven.b, 5);  // FMA, F16C, AVX2
  if (!avx2) return paths;
  paths.push_back(Path::avx2);
  const bool avx512 = (states & 0xe6) == 0xe6 && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) &&
                      bit(seven.b, 31);  // F, DQ, BW, VL
  if (!avx512) return paths;
  paths.push_back(Path::avx512_plain);
  if (!bit(seven.c, 11)) return paths;  // no VNNI
  paths.push_back(Path::avx512);
  if (!bit(ask(7, 1).a, 5)) return paths;  // no AVX512-BF16
  paths.push_back(Path::avx512_bf16);
  // AMX-BF16, AMX-TILE and AMX-INT8.
  const bool amx = (states & 0x60000) == 0x60000 && bit(seven.d, 22) && bit(seven.d, 24) && bit(seven.d, 25);
  if (amx && allow_tiles()) paths.push_back(Path::amx);
#endif
  return paths;
}

}  // namespace armillary
