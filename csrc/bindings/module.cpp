// The extension module: its parts, and the mapping from native faults to the classes of cpuinfer.errors.
#include "bindings/bindings.h"

namespace py = pybind11;

namespace cpuinfer {

const char* fault_class(Fault fault) {
  switch (fault) {
    case Fault::kCheckpoint: return "CheckpointError";
    case Fault::kUnsupportedModel: return "UnsupportedModel";
    case Fault::kUnsupportedFormat: return "UnsupportedFormat";
    case Fault::kUnsupportedCpu: return "UnsupportedCpu";
    case Fault::kContextFull: return "ContextFull";
    case Fault::kNumerical: return "NumericalError";
    case Fault::kCancelled: return "Cancelled";
    case Fault::kInvalid: return "InvalidRequest";
    case Fault::kMemory: return "MemoryLimit";
  }
  return "CpuInferError";
}

}  // namespace cpuinfer

namespace {

void translate(std::exception_ptr pending) {
  try {
    if (pending) std::rethrow_exception(pending);
  } catch (const cpuinfer::Error& error) {
    const py::object type = py::module_::import("cpuinfer.errors").attr(cpuinfer::fault_class(error.fault()));
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
  cpuinfer::bind_sampler(m);
  cpuinfer::bind_runtime(m);
}
