// Binds what is known of the processor and the measurement of its memory.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "core/bandwidth.h"
#include "core/cpu.h"

namespace py = pybind11;

namespace cpuinfer {

namespace {

std::vector<std::string> names_of(uint32_t features) {
  std::vector<std::string> names;
  for (const CpuFeature feature : kCpuFeatures) {
    if (features & feature) names.emplace_back(feature_name(feature));
  }
  return names;
}

py::dict cpu_features() {
  const CpuInfo& info = cpu_info();
  py::dict answer;
  answer["brand"] = info.brand;
  answer["usable"] = names_of(info.features);
  answer["present"] = names_of(info.present);
  return answer;
}

}  // namespace

void bind_machine(py::module_& m) {
  m.def("cpu_features", &cpu_features);
  m.def("read_bandwidth", &read_bandwidth, py::arg("bytes"), py::arg("threads"), py::arg("seconds") = 0.3,
        py::call_guard<ReleasedGil>());
}

}  // namespace cpuinfer
