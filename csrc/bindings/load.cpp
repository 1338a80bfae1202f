// Binds packing: tensors of files into matrices, while Python does other things.
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "load/packing.h"

namespace py = pybind11;

namespace cpuinfer {
namespace {

constexpr std::chrono::milliseconds kBetweenSignals{50};  // how long Ctrl-C may wait

using JobTuple = std::tuple<std::shared_ptr<Gguf>, std::string, std::shared_ptr<PackedMatrix>>;  // see PackJob

std::unique_ptr<Packing> start(const std::vector<JobTuple>& tuples, int threads) {
  std::vector<PackJob> jobs;
  jobs.reserve(tuples.size());
  for (const auto& [file, tensor, matrix] : tuples) jobs.push_back({file, tensor, matrix});
  return std::make_unique<Packing>(std::move(jobs), threads);
}

void wait(Packing& packing) {
  for (bool done = false; !done;) {
    {
      const ReleasedGil release;
      done = packing.wait(kBetweenSignals);
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

}  // namespace

void bind_load(py::module_& m) {
  py::class_<Packing>(m, "Packing", "Tensors of files on their way into matrices, in threads of their own.")
      .def(py::init(&start), py::arg("jobs"), py::arg("threads"))
      .def("wait", &wait, "Return once all is packed; raises what a thread met.")
      .def("stop", &Packing::stop, py::call_guard<ReleasedGil>(), "Leave the rest unpacked.");
}

}  // namespace cpuinfer
