// Waiting for another thread: spins, then yields, then sleeps.
#pragma once

#include <atomic>
#include <cstdint>

namespace cpuinfer {

// Returns when the value is no longer `seen`: true if that took so long that it slept.  Whoever changes it must call
// notify_all.
bool wait_while(const std::atomic<uint32_t>& value, uint32_t seen) noexcept;

}  // namespace cpuinfer
