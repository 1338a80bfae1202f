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

// A memoryview of fp32 numbers is taken without NumPy, which costs as much to import as the rest of a start.
std::vector<float> float_vector(const py::object& numbers) {
  if (PyMemoryView_Check(numbers.ptr())) {
    const py::buffer_info info = py::reinterpret_borrow<py::buffer>(numbers).request();
    if (info.format == "f" && info.ndim == 1 && info.strides[0] == sizeof(float)) {
      const auto* data = static_cast<const float*>(info.ptr);
      return {data, data + info.size};
    }
  }
  return to_vector(numbers.cast<Array<float>>());
}

std::vector<float> optional_vector(const py::object& numbers) {
  return numbers.is_none() ? std::vector<float>() : float_vector(numbers);
}

// None, or (kind, weight, bias or None, epsilon).
Norm make_norm(const py::object& norm) {
  if (norm.is_none()) return {};
  const auto [kind, weight, bias, eps] = norm.cast<std::tuple<std::string, py::object, py::object, float>>();
  if (kind != "rms" && kind != "layer") throw Error(Fault::kInvalid, "norm '" + kind + "': expected rms or layer");
  return {kind == "rms" ? NormKind::kRms : NormKind::kLayer, float_vector(weight), optional_vector(bias), eps};
}

Activation activation_named(const std::optional<std::string>& name) {
  if (!name) return Activation::kNone;
  if (*name == "relu") return Activation::kRelu;
  if (*name == "silu") return Activation::kSilu;
  if (*name == "gelu") return Activation::kGelu;
  if (*name == "gelu_tanh") return Activation::kGeluTanh;
  throw Error(Fault::kInvalid, "activation '" + *name + "': expected relu, silu, gelu or gelu_tanh");
}

CacheType cache_named(const std::string& name) {
  if (name == "f16") return CacheType::kF16;
  if (name == "int8") return CacheType::kInt8;
  if (name == "int4") return CacheType::kInt4;
  throw Error(Fault::kInvalid, "cache '" + name + "': expected f16, int8 or int4");
}

// (inverse frequencies, interleaved, magnitude).
using RopeTuple = std::tuple<std::vector<double>, bool, double>;

std::shared_ptr<Program> make_program(const std::vector<RopeTuple>& tuples) {
  std::vector<Rope> ropes;
  for (const auto& [frequencies, interleaved, magnitude] : tuples) {
    ropes.push_back({frequencies, interleaved, magnitude});
  }
  return std::make_shared<Program>(std::move(ropes));
}

using Residual = std::optional<ValueId>;
using Matrix = std::shared_ptr<PackedMatrix>;

ValueId add_embed(Program& self, const std::string& name, Matrix table, float scale, Matrix positions,
                  int64_t position_offset) {
  Op op{OpKind::kEmbed, name, {}, {}};
  op.weights = {std::move(table)};
  if (positions) op.weights.push_back(std::move(positions));
  op.scale = scale;
  op.position_offset = position_offset;
  return self.add(std::move(op))[0];
}

ValueId add_normalize(Program& self, const std::string& name, ValueId x, const py::object& norm, int64_t groups,
                      Residual residual) {
  Op op{OpKind::kNormalize, name, {x}, {}};
  op.norm = make_norm(norm);
  op.groups = groups;
  op.residual = residual.value_or(kNoValue);
  return self.add(std::move(op))[0];
}

std::vector<ValueId> add_linears(Program& self, const std::string& name, ValueId x, const py::object& norm,
                                 const MatrixList& weights, const std::vector<py::object>& biases,
                                 const std::optional<std::string>& act, float softcap, Residual residual,
                                 const std::vector<int32_t>& input_order) {
  Op op{OpKind::kLinears, name, {x}, {}};
  op.weights = {weights.begin(), weights.end()};
  op.norm = make_norm(norm);
  op.residual = residual.value_or(kNoValue);
  for (const py::object& bias : biases) op.biases.push_back(optional_vector(bias));
  op.input_order = input_order;
  op.activation = activation_named(act);
  op.softcap = softcap;
  return self.add(std::move(op));
}

ValueId add_glu(Program& self, const std::string& name, ValueId x, const py::object& norm, Matrix gate, Matrix up,
                const std::vector<py::object>& biases, const std::string& act,
                const std::vector<int32_t>& input_order) {
  Op op{OpKind::kGlu, name, {x}, {}};
  op.weights = {std::move(gate), std::move(up)};
  op.norm = make_norm(norm);
  for (const py::object& bias : biases) op.biases.push_back(optional_vector(bias));
  op.input_order = input_order;
  op.activation = activation_named(act);
  return self.add(std::move(op))[0];
}

ValueId add_experts(Program& self, const std::string& name, ValueId x, const py::object& norm,
                    const MatrixList& weights, int64_t count, int64_t used, bool renormalise, const std::string& act,
                    Residual residual, const std::vector<int32_t>& input_order,
                    const std::vector<int32_t>& inner_order) {
  Op op{OpKind::kExperts, name, {x}, {}};
  op.weights = {weights.begin(), weights.end()};
  op.norm = make_norm(norm);
  op.residual = residual.value_or(kNoValue);
  op.activation = activation_named(act);
  op.experts = {count, used, renormalise};
  op.input_order = input_order;
  op.inner_order = inner_order;
  return self.add(std::move(op))[0];
}

ValueId add_gated(Program& self, const std::string& name, ValueId x, ValueId gate, Residual residual) {
  Op op{OpKind::kGated, name, {x, gate}, {}};
  op.residual = residual.value_or(kNoValue);
  return self.add(std::move(op))[0];
}

ValueId add_attention(Program& self, const std::string& name, ValueId q, ValueId k, ValueId v, int32_t layer,
                      int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, int32_t rope, int64_t window,
                      float softcap, const std::vector<float>& slopes) {
  Op op{OpKind::kAttention, name, {q, k, v}, {}};
  op.attention = {layer, heads, kv_heads, head_dim, scale, rope, window, softcap, slopes};
  return self.add(std::move(op))[0];
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
  const auto& widths = session.plan().program().widths();
  if (id < 0 || static_cast<std::size_t>(id) >= widths.size() || rows < 0 || rows > session.options().limits.rows) {
    throw Error(Fault::kInvalid,
                "value " + std::to_string(id) + " of " + std::to_string(rows) + " rows does not exist");
  }
  const int64_t width = widths[static_cast<std::size_t>(id)];
  const py::ssize_t stride = static_cast<py::ssize_t>(session.plan().padded_width(id)) * 4;
  return py::array_t<float>({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(width)}, {stride, py::ssize_t{4}},
                            session.plan().value(id));
}

// (name, prompt or decoding, steps, rows, seconds, bytes, operations) of each op that ran.
using OpTimeTuple = std::tuple<std::string, std::string, int64_t, int64_t, double, double, double>;

std::vector<OpTimeTuple> read_profile(const Session& session) {
  std::vector<OpTimeTuple> tuples;
  for (const auto& [name, stage, time] : session.profile()) {
    if (time.steps == 0) continue;
    tuples.emplace_back(name, stage == Profile::kPrompt ? "prompt" : "decoding", time.steps, time.rows, time.seconds,
                        time.bytes, time.operations);
  }
  return tuples;
}

}  // namespace

void bind_runtime(py::module_& m) {
  py::class_<Program, std::shared_ptr<Program>>(m, "Program", "A forward pass as a flat list of ops.")
      .def(py::init(&make_program), py::arg("ropes"))
      .def("embed", &add_embed, py::arg("name"), py::arg("table"), py::kw_only(), py::arg("scale") = 1.0f,
           py::arg("positions") = nullptr, py::arg("position_offset") = 0)
      .def("normalize", &add_normalize, py::arg("name"), py::arg("x"), py::arg("norm"), py::kw_only(),
           py::arg("groups") = 1, py::arg("residual") = py::none())
      .def("linears", &add_linears, py::arg("name"), py::arg("x"), py::arg("norm"), py::arg("weights"), py::kw_only(),
           py::arg("biases"), py::arg("act") = py::none(), py::arg("softcap") = 0.0f, py::arg("residual") = py::none(),
           py::arg("input_order") = std::vector<int32_t>())
      .def("glu", &add_glu, py::arg("name"), py::arg("x"), py::arg("norm"), py::arg("gate"), py::arg("up"),
           py::kw_only(), py::arg("biases"), py::arg("act"), py::arg("input_order") = std::vector<int32_t>())
      .def("experts", &add_experts, py::arg("name"), py::arg("x"), py::arg("norm"), py::arg("weights"), py::kw_only(),
           py::arg("count"), py::arg("used"), py::arg("renormalise"), py::arg("act"), py::arg("residual") = py::none(),
           py::arg("input_order") = std::vector<int32_t>(), py::arg("inner_order") = std::vector<int32_t>())
      .def("gated", &add_gated, py::arg("name"), py::arg("x"), py::arg("gate"), py::kw_only(),
           py::arg("residual") = py::none())
      .def("attention", &add_attention, py::arg("name"), py::arg("q"), py::arg("k"), py::arg("v"), py::kw_only(),
           py::arg("layer"), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("scale"),
           py::arg("rope") = -1, py::arg("window") = 0, py::arg("softcap") = 0.0f,
           py::arg("slopes") = std::vector<float>());

  py::class_<ArenaLayout>(m, "ArenaLayout", "Where a plan puts values, in floats.")
      .def(py::init<>())
      .def("take", &ArenaLayout::take, py::arg("floats"))
      .def("give_back", &ArenaLayout::give_back, py::arg("offset"), py::arg("floats"))
      .def_property_readonly("end", &ArenaLayout::end);
  m.def(
      "worker_bytes",
      [](int64_t widest, int64_t head_dim, int64_t experts, int64_t tiled_rows) {
        return worker_bytes({widest, head_dim, experts, tiled_rows});
      },
      py::kw_only(), py::arg("widest"), py::arg("head_dim"), py::arg("experts"), py::arg("tiled_rows"),
      "What each worker has for itself of a session's arena.");

  py::class_<Session>(m, "Session", "Sequences of one loaded model, stepped together.")
      .def(py::init([](std::shared_ptr<Program> program, const std::string& isa, int threads, int64_t batch,
                       int64_t context, int64_t cache_pages, const std::string& cache, int64_t kept_pages,
                       bool keep_values, bool profile, bool tiles) {
             const PlanLimits limits{.rows = batch,
                                     .context = context,
                                     .cache = cache_named(cache),
                                     .keep_values = keep_values,
                                     .profile = profile,
                                     .tiles = tiles};
             return std::make_unique<Session>(
                 std::move(program), select_kernels(isa),
                 SessionOptions{
                     .limits = limits, .threads = threads, .cache_pages = cache_pages, .kept_pages = kept_pages});
           }),
           py::arg("program"), py::kw_only(), py::arg("isa") = "", py::arg("threads"), py::arg("batch"),
           py::arg("context"), py::arg("cache_pages"), py::arg("cache") = "f16", py::arg("kept_pages") = 0,
           py::arg("keep_values") = false, py::arg("profile") = false, py::arg("tiles") = false)
      .def("open", &Session::open, py::arg("sampler") = nullptr, Released())
      .def("close", &Session::close, Released())
      .def(
          "reuse",
          [](Session& self, int64_t sequence, const Tokens& prompt) {
            const ReleasedGil released;
            return self.reuse(sequence, prompt);
          },
          py::arg("sequence"), py::arg("prompt"))
      .def("length", &Session::length, Released())
      .def("step", &step)
      .def("cancel", &Session::cancel)
      .def("value", &read_value)
      .def("profile", &read_profile, Released())
      .def_property_readonly("vocabulary", [](const Session& self) { return self.plan().vocabulary(); })
      .def_property_readonly("weight_bytes", [](const Session& self) { return self.plan().weight_bytes(); })
      .def_property_readonly("arena_bytes", [](const Session& self) { return self.plan().arena_bytes(); })
      .def_property_readonly("page_bytes", [](const Session& self) { return self.cache().shape().page_bytes(); })
      .def_property_readonly("pages_used", [](const Session& self) { return self.cache().used(); })
      .def_property_readonly("pages_kept", [](const Session& self) { return self.cache().kept(); });
}

}  // namespace cpuinfer
