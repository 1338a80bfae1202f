// Declares the parts of the extension module; only the files of this folder include pybind11.
#pragma once

#include <pybind11/pybind11.h>

#include "core/error.h"

namespace cpuinfer {

// The name of the class in cpuinfer.errors that stands for a fault.
const char* fault_class(Fault fault);

void bind_checkpoint(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_machine(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);
void bind_sampler(pybind11::module_& m);

}  // namespace cpuinfer
