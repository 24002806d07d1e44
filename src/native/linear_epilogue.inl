// What happens to the sums of a unit before they are written.
#include <cstdint>

#include "kernels.h"

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

inline Vec load_some(const float* p, int count) { return count >= Vec::N ? Vec::load(p) : Vec::load(p, count); }

inline void store_some(Vec v, float* p, int count) {
  if (count >= Vec::N)
    v.store(p);
  else
    v.store(p, count);
}

// sums [rows][kUnit] of unit `unit`; scales: of the unit's rows, or null. Writes rows of y from column unit_outputs * unit on.
inline void finish(const MatrixShape& shape, int64_t unit, const float* sums, const float* scales, int64_t rows, float* y,
                   int64_t y_stride, const Epilogue& epilogue) {
  const int64_t width = unit_outputs(shape);
  const int64_t first = unit * width;
  const int count = int(smaller(width, outputs_of(shape) - first));
  const float* bias = epilogue.bias ? epilogue.bias + first : nullptr;
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = sums + row * kUnit;
    float* to = y + row * y_stride + first;
    const float* residual = epilogue.residual ? epilogue.residual + row * epilogue.residual_stride + first : nullptr;
    for (int i = 0; i < count; i += Vec::N) {
      const int left = count - i;
      Vec value = Vec::load(from + i);
      if (scales) value = value * Vec::load(scales + i);
      if (bias) value = value + load_some(bias + i, left);
      if (shape.paired) {
        Vec partner = Vec::load(from + width + i);
        if (scales) partner = partner * Vec::load(scales + width + i);
        if (bias) partner = partner + load_some(bias + shape.out / 2 + i, left);
        value = activate(value, epilogue.activation) * partner;
      }
      if (residual) value = value + load_some(residual + i, left);
      store_some(value, to + i, left);
    }
  }
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
