// Declares the parts of the extension module; only the files of this folder include pybind11.
#pragma once

#include <pybind11/pybind11.h>

#include "core/error.h"

namespace cpuinfer {

// The name of the class in cpuinfer.errors that stands for a fault.
const char* fault_class(Fault fault);

// As py::gil_scoped_release, but a daemon thread that comes back while the interpreter exits sleeps for ever: waiting
// for the interpreter would end it by unwinding, which no destructor survives.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil();
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

void bind_checkpoint(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_load(pybind11::module_& m);
void bind_machine(pybind11::module_& m);
void bind_quantize(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);
void bind_sampler(pybind11::module_& m);
void bind_tokenizer(pybind11::module_& m);

}  // namespace cpuinfer
