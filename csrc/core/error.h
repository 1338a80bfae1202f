// The one exception type of the native core: what went wrong (a Python exception class) and a message for a person.
#pragma once

#include <stdexcept>
#include <string>

namespace cpuinfer {

// Each fault maps to one class of cpuinfer.errors; bindings/module.cpp holds the mapping.
enum class Fault {
  kCheckpoint,  // a file is damaged or not what it claims to be
  kUnsupportedModel,
  kUnsupportedFormat,
  kUnsupportedCpu,
  kContextFull,
  kNumerical,  // NaN or infinity where a number must be
  kCancelled,
  kInvalid,  // a caller's argument is out of range
  kMemory,   // an allocation the caller's limits do not allow
};

class Error : public std::runtime_error {
 public:
  Error(Fault fault, const std::string& message) : std::runtime_error(message), fault_(fault) {}
  Fault fault() const noexcept { return fault_; }

 private:
  Fault fault_;
};

}  // namespace cpuinfer
