// The machine for Python: processor features, and the measured speed of its memory.
#include "bindings/bindings.h"
#include "core/bandwidth.h"
#include "core/cpu.h"

namespace py = pybind11;

namespace cpuinfer {

namespace {

py::list feature_names(uint32_t features) {
  py::list names;
  for (const CpuFeature feature : {kCpuAvx2, kCpuAvxVnni, kCpuAvx512, kCpuAvx512Vnni, kCpuAmxInt8}) {
    if (features & feature) names.append(feature_name(feature));
  }
  return names;
}

py::dict cpu_features() {
  const CpuInfo& cpu = cpu_info();
  py::dict result;
  result["brand"] = py::str(cpu.brand);
  result["present"] = feature_names(cpu.present);
  result["usable"] = feature_names(cpu.features);
  return result;
}

}  // namespace

void bind_machine(py::module_& m) {
  m.def("cpu_features", &cpu_features);
  m.def("read_bandwidth", &read_bandwidth, py::arg("bytes"), py::arg("threads") = 1, py::arg("seconds") = 0.3,
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace cpuinfer
