// What the processor can run, and which set of kernels is used on it.
#pragma once
#include <cstdint>
#include <vector>

namespace armillary {

// One set of kernels, compiled for one set of instructions. Later ones are faster where they run.
enum class Path { portable, avx2, avx512_plain, avx512, avx512_bf16, amx };

// The name under which a path is forced and reported: portable, avx2, avx512_plain, avx512, avx512_bf16, amx.
const char* name(Path path);

// Paths that this build contains and this processor can run, slowest first. AMX is asked of the kernel first, which
// keeps it from processes that do not.
std::vector<Path> available_paths();

}  // namespace armillary
