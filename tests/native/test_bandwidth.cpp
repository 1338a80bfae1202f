// The bandwidth measurement: it refuses what it cannot measure and gives a believable number for the rest.
#include <cstdint>
#include <limits>

#include "check.h"
#include "core/bandwidth.h"
#include "core/error.h"

using cpuinfer::Error;
using cpuinfer::Fault;
using cpuinfer::read_bandwidth;

static bool refused(Fault fault, int64_t bytes, int threads, double seconds) {
  try {
    read_bandwidth(bytes, threads, seconds);
  } catch (const Error& error) {
    return error.fault() == fault;
  }
  return false;
}

TEST("a working set is read by any number of threads, of any size that gives each thread a part") {
  for (const int threads : {1, 2, 3}) {
    for (const int64_t bytes : {12288, 12289, 1000003}) CHECK(read_bandwidth(bytes, threads, 1e-6) > 0);
  }
}

TEST("arguments out of range are refused") {
  CHECK(refused(Fault::kInvalid, 1 << 20, 0, 0.1));
  CHECK(refused(Fault::kInvalid, 1 << 20, 1025, 0.1));
  CHECK(refused(Fault::kInvalid, -1, 1, 0.1));
  CHECK(refused(Fault::kInvalid, 4095, 1, 0.1));
  CHECK(refused(Fault::kInvalid, 8191, 2, 0.1));
  CHECK(refused(Fault::kInvalid, 1 << 20, 1, 0));
  CHECK(refused(Fault::kInvalid, 1 << 20, 1, 61));
  CHECK(refused(Fault::kInvalid, 1 << 20, 1, std::numeric_limits<double>::quiet_NaN()));
}

TEST("a working set larger than the machine's memory is refused before it is touched") {
  CHECK(refused(Fault::kMemory, std::numeric_limits<int64_t>::max(), 1, 0.1));
  CHECK(refused(Fault::kMemory, int64_t{1} << 50, 2, 0.1));
}

int main() { return check::run_all(); }
