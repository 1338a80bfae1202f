// Binds the sampler: options by name, one row of logits in, one token out.
#include "runtime/sampler.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"

namespace py = pybind11;

namespace cpuinfer {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
std::span<const T> row(const Array<T>& array) {
  if (array.ndim() != 1) {
    throw Error(Fault::kInvalid, "an array of " + std::to_string(array.ndim()) + " dimensions, expected 1");
  }
  return {array.data(), static_cast<std::size_t>(array.size())};
}

// In the order of Stage, which is also the default order.
constexpr const char* kStageNames[] = {"penalties", "top_k", "top_p", "min_p", "temperature"};
static_assert(std::size(kStageNames) == static_cast<std::size_t>(Stage::kTemperature) + 1);

Stage stage_named(const std::string& name) {
  std::string known;
  for (std::size_t i = 0; i < std::size(kStageNames); ++i) {
    if (name == kStageNames[i]) return static_cast<Stage>(i);
    known += (i == 0 ? "" : ", ") + std::string(kStageNames[i]);
  }
  throw Error(Fault::kInvalid, "order: unknown stage '" + name + "', expected " + known);
}

std::shared_ptr<Sampler> make(int32_t vocabulary, double temperature, int32_t top_k, double top_p, double min_p,
                              double repetition_penalty, double presence_penalty, double frequency_penalty,
                              std::vector<std::pair<int32_t, float>> logit_bias, uint64_t seed,
                              const std::vector<std::string>& order, int32_t logprobs) {
  SamplerOptions options{
      temperature,           top_k, top_p, min_p,   repetition_penalty, presence_penalty, frequency_penalty,
      std::move(logit_bias), seed,  {},    logprobs};
  for (const std::string& name : order) options.order.push_back(stage_named(name));
  return std::make_shared<Sampler>(std::move(options), vocabulary);
}

// (token, log-probability or None, alternatives or None)
py::tuple sample(Sampler& sampler, const Array<float>& logits) {
  const Sampled sampled = sampler.sample(row(logits));
  if (std::isnan(sampled.logprob)) return py::make_tuple(sampled.token, py::none(), py::none());
  return py::make_tuple(sampled.token, sampled.logprob, sampled.top);
}

}  // namespace

void bind_sampler(py::module_& m) {
  const SamplerOptions defaults;
  const std::vector<std::string> order(std::begin(kStageNames), std::end(kStageNames));
  py::class_<Sampler, std::shared_ptr<Sampler>>(m, "Sampler")
      .def(py::init(&make), py::kw_only(), py::arg("vocabulary"), py::arg("temperature") = defaults.temperature,
           py::arg("top_k") = defaults.top_k, py::arg("top_p") = defaults.top_p, py::arg("min_p") = defaults.min_p,
           py::arg("repetition_penalty") = defaults.repetition_penalty,
           py::arg("presence_penalty") = defaults.presence_penalty,
           py::arg("frequency_penalty") = defaults.frequency_penalty, py::arg("logit_bias") = defaults.logit_bias,
           py::arg("seed") = defaults.seed, py::arg("order") = order, py::arg("logprobs") = defaults.logprobs)
      .def(
          "see_prompt", [](Sampler& sampler, const std::vector<int32_t>& tokens) { sampler.see_prompt(tokens); },
          py::arg("tokens"))
      .def("sample", &sample, py::arg("logits"));
  m.def("philox", &philox, py::arg("key"), py::arg("counter"));
}

}  // namespace cpuinfer
