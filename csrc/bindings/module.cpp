// The extension module: its parts, and the mapping from native faults to the classes of cpuinfer.errors.
#include "bindings/bindings.h"
#include "core/error.h"

namespace py = pybind11;

namespace {

const char* class_name(cpuinfer::Fault fault) {
  switch (fault) {
    case cpuinfer::Fault::kCheckpoint:
      return "CheckpointError";
    case cpuinfer::Fault::kUnsupportedModel:
      return "UnsupportedModel";
    case cpuinfer::Fault::kUnsupportedFormat:
      return "UnsupportedFormat";
    case cpuinfer::Fault::kUnsupportedCpu:
      return "UnsupportedCpu";
    case cpuinfer::Fault::kContextFull:
      return "ContextFull";
    case cpuinfer::Fault::kNumerical:
      return "NumericalError";
    case cpuinfer::Fault::kCancelled:
      return "Cancelled";
    case cpuinfer::Fault::kInvalid:
      return "InvalidRequest";
    case cpuinfer::Fault::kMemory:
      return "MemoryLimit";
  }
  return "CpuInferError";
}

void translate(std::exception_ptr pending) {
  try {
    if (pending) std::rethrow_exception(pending);
  } catch (const cpuinfer::Error& error) {
    const py::object type = py::module_::import("cpuinfer.errors").attr(class_name(error.fault()));
    py::set_error(type, error.what());
  }
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native core of cpuinfer.  Private: use the names of the cpuinfer package.";
  py::register_local_exception_translator(&translate);
  cpuinfer::bind_checkpoint(m);
  cpuinfer::bind_kernels(m);
  cpuinfer::bind_machine(m);
  cpuinfer::bind_runtime(m);
  cpuinfer::bind_sampler(m);
}
