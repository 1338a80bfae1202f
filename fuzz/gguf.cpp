// libFuzzer target: any bytes are a sound GGUF file or a checkpoint error.
//   python fuzz/seeds.py seeds
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Icsrc -Itests/native fuzz/gguf.cpp
//     csrc/checkpoint/gguf*.cpp csrc/checkpoint/tensor_types.cpp csrc/core/file.cpp csrc/core/text.cpp -o fuzz_gguf
//   ./fuzz_gguf -malloc_limit_mb=64 -timeout=2 seeds/gguf
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "gguf_survey.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  survey({reinterpret_cast<const char*>(data), size});
  return 0;
}
