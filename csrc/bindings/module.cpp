// The extension module: its parts, and the mapping from native faults to the classes of cpuinfer.errors.
#include <unistd.h>

#include <atomic>
#include <new>
#include <thread>

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

namespace {

std::atomic<std::thread::id> exiting_thread{};  // the one that exits the interpreter, once it does
std::atomic<int> returning{0};                  // threads that are past the question and wait for the interpreter

// Run by atexit: afterwards no other thread waits for the interpreter in ~ReleasedGil.
void note_exit() {
  exiting_thread.store(std::this_thread::get_id());
  PyThreadState* const state = PyEval_SaveThread();
  while (returning.load() > 0) std::this_thread::yield();
  PyEval_RestoreThread(state);
}

}  // namespace

ReleasedGil::~ReleasedGil() {
  returning.fetch_add(1);
  const std::thread::id exiting = exiting_thread.load();
  if (exiting != std::thread::id() && exiting != std::this_thread::get_id()) {
    returning.fetch_sub(1);
    for (;;) pause();
  }
  PyEval_RestoreThread(state_);
  returning.fetch_sub(1);
}

}  // namespace cpuinfer

namespace {

void translate(std::exception_ptr pending) {
  try {
    if (pending) std::rethrow_exception(pending);
  } catch (const cpuinfer::Error& error) {
    const py::object type = py::module_::import("cpuinfer.errors").attr(cpuinfer::fault_class(error.fault()));
    py::set_error(type, error.what());
  } catch (const std::bad_alloc&) {
    py::set_error(py::module_::import("cpuinfer.errors").attr("MemoryLimit"), "the system has no memory for this");
  }
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native core of cpuinfer.  Private: use the names of the cpuinfer package.";
  py::register_local_exception_translator(&translate);
  py::module_::import("atexit").attr("register")(py::cpp_function(&cpuinfer::note_exit));
  cpuinfer::bind_checkpoint(m);
  cpuinfer::bind_kernels(m);
  cpuinfer::bind_load(m);  // after the files and matrices it joins
  cpuinfer::bind_machine(m);
  cpuinfer::bind_quantize(m);
  cpuinfer::bind_sampler(m);
  cpuinfer::bind_tokenizer(m);
  cpuinfer::bind_runtime(m);
}
