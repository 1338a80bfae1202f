// The one exception type of the native core: what went wrong (a Python exception class) and a message for a person.
#pragma once

#include <stdexcept>
#include <string>

namespace cpuinfer {

// Each fault maps to one class of cpuinfer.errors; bindings/module.cpp holds the mapping.
enum class Fault {
  kCheckpoint,         // CheckpointError: a file is damaged or not what it claims to be
  kUnsupportedModel,   // UnsupportedModel
  kUnsupportedFormat,  // UnsupportedFormat
  kUnsupportedCpu,     // UnsupportedCpu
  kContextFull,        // ContextFull
  kNumerical,          // NumericalError: NaN or infinity where a number must be
  kCancelled,          // Cancelled
  kInvalid,            // InvalidRequest: a caller's argument is out of range
  kMemory,             // MemoryLimit: an allocation the caller's limits do not allow
};

class Error : public std::runtime_error {
 public:
  Error(Fault fault, const std::string& message) : std::runtime_error(message), fault_(fault) {}
  Fault fault() const noexcept { return fault_; }

 private:
  Fault fault_;
};

}  // namespace cpuinfer
