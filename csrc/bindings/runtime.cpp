// To be written.
#include "bindings/bindings.h"

namespace cpuinfer {

void bind_runtime(pybind11::module_&) {}

}  // namespace cpuinfer
