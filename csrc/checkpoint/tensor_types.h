// The ways of storing a tensor that GGUF has a number for, whether or not cpuinfer computes with them.
#pragma once

#include <cstdint>
#include <span>

namespace cpuinfer {

// A row is stored as whole blocks: `elements` neighbours in `bytes` bytes.
struct TensorType {
  uint32_t id;
  const char* name;
  uint32_t elements;
  uint32_t bytes;
};

std::span<const TensorType> tensor_types() noexcept;

// Null for a number that was never given, or whose type was removed from the format.
const TensorType* find_tensor_type(uint32_t id) noexcept;

}  // namespace cpuinfer
