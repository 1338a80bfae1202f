// Binds the sampler: options by name, one row of logits in, one token out.
#include "runtime/sampler.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <string>
#include <string_view>

#include "bindings/bindings.h"
#include "core/error.h"

namespace py = pybind11;

namespace cpuinfer {
namespace {

template <typename T>
std::span<const T> row(const py::array_t<T, py::array::c_style | py::array::forcecast>& array) {
  if (array.ndim() != 1) {
    throw Error(Fault::kInvalid, "an array of " + std::to_string(array.ndim()) + " dimensions, expected 1");
  }
  return {array.data(), static_cast<std::size_t>(array.size())};
}

Stage stage_named(std::string_view name) {
  constexpr std::pair<std::string_view, Stage> kStages[] = {{"penalties", Stage::kPenalties},
                                                            {"top_k", Stage::kTopK},
                                                            {"top_p", Stage::kTopP},
                                                            {"min_p", Stage::kMinP},
                                                            {"temperature", Stage::kTemperature}};
  for (const auto& [known, stage] : kStages) {
    if (known == name) return stage;
  }
  throw Error(Fault::kInvalid,
              "order: unknown stage '" + std::string(name) + "', expected penalties, top_k, top_p, min_p, temperature");
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
py::tuple sample(Sampler& sampler, const py::array_t<float, py::array::c_style | py::array::forcecast>& logits) {
  const Sampled sampled = sampler.sample(row(logits));
  if (std::isnan(sampled.logprob)) return py::make_tuple(sampled.token, py::none(), py::none());
  return py::make_tuple(sampled.token, sampled.logprob, sampled.top);
}

}  // namespace

void bind_sampler(py::module_& m) {
  const SamplerOptions defaults;
  const std::vector<std::string> order = {"penalties", "top_k", "top_p", "min_p", "temperature"};
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
