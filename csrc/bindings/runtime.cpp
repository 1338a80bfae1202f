// Binds programs and sessions: what the loader writes down and what the engine steps.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "core/error.h"
#include "kernels/dispatch.h"
#include "runtime/session.h"

namespace py = pybind11;

namespace cpuinfer {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
using Released = py::call_guard<ReleasedGil>;  // what may wait for a running step
using MatrixList = std::vector<std::shared_ptr<PackedMatrix>>;

template <typename T>
std::vector<T> to_vector(const Array<T>& array) {
  return {array.data(), array.data() + array.size()};
}

Norm make_norm(const py::object& weight, float eps) {
  if (weight.is_none()) return {};
  return {to_vector(weight.cast<Array<float>>()), eps};
}

// Asked on the main thread, the only one to handle signals, while a step runs without the GIL: lets Python's signal
// handlers run, so that Ctrl-C stops a long prompt.  The exception they raise stays set for step() below.
bool python_interrupted() noexcept {
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

Want want_of(const std::string& name) {
  if (name == "nothing") return Want::kNothing;
  if (name == "sample") return Want::kSample;
  if (name == "scores") return Want::kScores;
  if (name == "logits") return Want::kLogits;
  throw Error(Fault::kInvalid, "want: '" + name + "', expected nothing, sample, scores or logits");
}

// (sequence, tokens, want, targets or None) for each feed.  Not arrays: numpy handles signals as it converts, and what
// a handler raises there would be taken for an argument of the wrong type.
using Tokens = std::vector<int32_t>;
using FeedTuple = std::tuple<int64_t, Tokens, std::string, std::optional<Tokens>>;

py::object error_object(const Error& error) {
  return py::module_::import("cpuinfer.errors").attr(fault_class(error.fault()))(error.what());
}

py::object to_python(const FeedResult& result, Want want, int64_t vocabulary) {
  if (result.error) return error_object(*result.error);
  switch (want) {
    case Want::kNothing: return py::none();
    case Want::kSample: return py::make_tuple(result.sampled.token, result.sampled.logprob, result.sampled.top);
    case Want::kScores: return py::array_t<float>(static_cast<py::ssize_t>(result.scores.size()), result.scores.data());
    case Want::kLogits: {
      const py::ssize_t rows = static_cast<py::ssize_t>(result.logits.size()) / vocabulary;
      return py::array_t<float>({rows, static_cast<py::ssize_t>(vocabulary)}, result.logits.data());
    }
  }
  return py::none();
}

py::list step(Session& session, const std::vector<FeedTuple>& tuples) {
  std::vector<Feed> feeds;
  feeds.reserve(tuples.size());
  for (const auto& [sequence, tokens, want, targets] : tuples) {
    feeds.push_back({sequence, tokens, want_of(want), targets.value_or(Tokens{})});
  }
  const py::module_ threading = py::module_::import("threading");
  const bool handles_signals = threading.attr("current_thread")().is(threading.attr("main_thread")());
  std::vector<FeedResult> results;
  try {
    const ReleasedGil released;
    results = session.step(feeds, handles_signals ? &python_interrupted : nullptr);
  } catch (const Error&) {
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();  // a signal handler's, KeyboardInterrupt usually
    throw;
  }
  py::list out;
  for (std::size_t i = 0; i < results.size(); ++i) {
    out.append(to_python(results[i], feeds[i].want, session.plan().vocabulary()));
  }
  return out;
}

py::array_t<float> read_value(const Session& session, ValueId id, int64_t rows) {
  const auto& values = session.plan().program().values();
  if (id < 0 || static_cast<std::size_t>(id) >= values.size() || rows < 0 || rows > session.options().batch) {
    throw Error(Fault::kInvalid,
                "value " + std::to_string(id) + " of " + std::to_string(rows) + " rows does not exist");
  }
  const int64_t width = values[static_cast<std::size_t>(id)].width;
  const py::ssize_t stride = static_cast<py::ssize_t>(session.plan().padded_width(id)) * 4;
  return py::array_t<float>({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(width)}, {stride, py::ssize_t{4}},
                            session.plan().value(id));
}

}  // namespace

void bind_runtime(py::module_& m) {
  py::class_<Program, std::shared_ptr<Program>>(m, "Program", "A forward pass as a flat list of ops.")
      .def(py::init([](const Array<double>& inverse_frequency, bool interleaved) {
             return std::make_shared<Program>(Rope{to_vector(inverse_frequency), interleaved});
           }),
           py::kw_only(), py::arg("inverse_frequency"), py::arg("interleaved"))
      .def("embed", [](Program& self, const std::string& name,
                       std::shared_ptr<PackedMatrix> table) { return self.add_embed(name, std::move(table)); })
      .def("linears",
           [](Program& self, const std::string& name, ValueId x, const py::object& norm, float eps,
              const MatrixList& weights, std::optional<ValueId> residual) {
             return self.add_linears(name, x, make_norm(norm, eps), {weights.begin(), weights.end()},
                                     residual.value_or(kNoValue));
           })
      .def("glu",
           [](Program& self, const std::string& name, ValueId x, const py::object& norm, float eps,
              std::shared_ptr<PackedMatrix> gate, std::shared_ptr<PackedMatrix> up) {
             return self.add_glu(name, x, make_norm(norm, eps), std::move(gate), std::move(up));
           })
      .def("attention", [](Program& self, const std::string& name, ValueId q, ValueId k, ValueId v, int32_t layer,
                           int64_t heads, int64_t kv_heads, int64_t head_dim, float scale) {
        return self.add_attention(name, q, k, v, {layer, heads, kv_heads, head_dim, scale});
      });

  py::class_<Session>(m, "Session", "Sequences of one loaded model, stepped together.")
      .def(py::init([](std::shared_ptr<Program> program, const std::string& isa, int threads, int64_t batch,
                       int64_t context, int64_t cache_pages, bool keep_values) {
             return std::make_unique<Session>(std::move(program), select_kernels(isa),
                                              SessionOptions{threads, batch, context, cache_pages, keep_values});
           }),
           py::arg("program"), py::kw_only(), py::arg("isa") = "", py::arg("threads"), py::arg("batch"),
           py::arg("context"), py::arg("cache_pages"), py::arg("keep_values") = false)
      .def("open", &Session::open, py::arg("sampler") = nullptr, Released())
      .def("close", &Session::close, Released())
      .def("length", &Session::length, Released())
      .def("step", &step)
      .def("cancel", &Session::cancel)
      .def("value", &read_value)
      .def("dump", [](const Session& self) { return self.plan().dump(); })
      .def_property_readonly("vocabulary", [](const Session& self) { return self.plan().vocabulary(); })
      .def_property_readonly("weight_bytes", [](const Session& self) { return self.plan().weight_bytes(); })
      .def_property_readonly("page_bytes", [](const Session& self) { return self.cache().shape().page_bytes(); })
      .def_property_readonly("pages_used", [](const Session& self) { return self.cache().used(); });
}

}  // namespace cpuinfer
