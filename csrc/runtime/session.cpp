// Gathers the rows of a step, runs the plan with all workers, and turns logits into tokens and scores.
#include "runtime/session.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <new>

namespace cpuinfer {
namespace {

constexpr auto kInterruptInterval = std::chrono::milliseconds(50);

// What worker 0 asks between ops.
struct Watch {
  const std::atomic<bool>* cancel;
  bool (*interrupted)() noexcept;
  std::chrono::steady_clock::time_point next;

  static bool ask(void* context) noexcept {
    Watch& watch = *static_cast<Watch*>(context);
    if (watch.cancel->load(std::memory_order_relaxed)) return true;
    if (watch.interrupted == nullptr) return false;
    const auto now = std::chrono::steady_clock::now();
    if (now < watch.next) return false;
    watch.next = now + kInterruptInterval;
    return watch.interrupted();
  }
};

// log softmax(logits)[target], summed in double.
double log_probability(std::span<const float> logits, int32_t target) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - static_cast<double>(largest));
  const double value = static_cast<double>(logits[static_cast<std::size_t>(target)]) - largest - std::log(total);
  if (!std::isfinite(total)) throw Error(Fault::kNumerical, "the logits hold NaN or infinity");
  return value;
}

}  // namespace

Session::Session(std::shared_ptr<const Program> program, const KernelSet& kernels, const SessionOptions& options)
    : program_(std::move(program)),
      options_(options),
      team_(options.threads),
      crew_(options.threads),
      plan_(*program_, kernels, team_, options.limits),
      cache_(plan_.cache_shape(), options.cache_pages, options.kept_pages) {}

int64_t Session::open(std::shared_ptr<Sampler> sampler) {
  const std::lock_guard lock(mutex_);
  const int64_t id = next_id_++;
  sequences_[id].sampler = std::move(sampler);
  return id;
}

void Session::close(int64_t sequence) {
  const std::lock_guard lock(mutex_);
  Sequence& found = find(sequence);
  cache_.release(found.pages);
  sequences_.erase(sequence);
}

int64_t Session::reuse(int64_t sequence, std::span<const int32_t> prompt) {
  const std::lock_guard lock(mutex_);
  Sequence& found = find(sequence);
  if (!found.pages.empty()) throw Error(Fault::kInvalid, "sequence " + std::to_string(sequence) + " is not empty");
  if (prompt.empty()) return 0;
  found.addresses.reserve(prompt.size() / kPageTokens);  // first: the pages taken are given back by close() alone
  found.pages = cache_.share(prompt.first(prompt.size() - 1));
  for (const KvCache::PageRef page : found.pages) found.addresses.push_back(KvCache::address(page));
  found.length = static_cast<int64_t>(found.pages.size()) * kPageTokens;
  return found.length;
}

int64_t Session::length(int64_t sequence) const {
  const std::lock_guard lock(mutex_);
  return find(sequence).length;
}

void Session::cancel() noexcept {
  if (stepping_.load()) cancel_.store(true);
}

const Session::Sequence& Session::find(int64_t sequence) const {
  const auto it = sequences_.find(sequence);
  if (it == sequences_.end()) throw Error(Fault::kInvalid, "sequence " + std::to_string(sequence) + " is not open");
  return it->second;
}

void Session::check(const std::vector<Feed>& feeds) {
  int64_t rows = 0;
  std::vector<int64_t> seen;
  for (const Feed& feed : feeds) {
    const Sequence& sequence = find(feed.sequence);
    if (std::find(seen.begin(), seen.end(), feed.sequence) != seen.end()) {
      throw Error(Fault::kInvalid, "sequence " + std::to_string(feed.sequence) + " is fed twice in a step");
    }
    seen.push_back(feed.sequence);
    if (feed.tokens.empty()) throw Error(Fault::kInvalid, "a feed without tokens");
    const int64_t count = static_cast<int64_t>(feed.tokens.size());
    rows += count;
    if (sequence.length + count > options_.limits.context) {
      throw Error(Fault::kContextFull, std::to_string(sequence.length + count) + " tokens do not fit the context of " +
                                           std::to_string(options_.limits.context));
    }
    const auto check_token = [&](int32_t token, int32_t least) {
      if (token >= least && token < plan_.vocabulary()) return;
      throw Error(Fault::kInvalid,
                  "token id " + std::to_string(token) + ", expected 0 to " + std::to_string(plan_.vocabulary() - 1));
    };
    for (const int32_t token : feed.tokens) check_token(token, 0);
    if (feed.want == Want::kScores && feed.targets.size() != feed.tokens.size()) {
      throw Error(Fault::kInvalid, "scores need one target for each token");
    }
    for (const int32_t target : feed.targets) check_token(target, -1);
    if (feed.want == Want::kSample && !sequence.sampler) {
      throw Error(Fault::kInvalid, "sequence " + std::to_string(feed.sequence) + " has no sampler");
    }
  }
  if (rows < 1 || rows > options_.limits.rows) {
    throw Error(Fault::kInvalid,
                std::to_string(rows) + " rows in a step, expected 1 to " + std::to_string(options_.limits.rows));
  }
}

void Session::reserve_pages(const std::vector<Feed>& feeds) {
  for (const Feed& feed : feeds) {
    Sequence& sequence = find(feed.sequence);
    const int64_t end = sequence.length + static_cast<int64_t>(feed.tokens.size());
    const std::size_t needed = static_cast<std::size_t>((end + kPageTokens - 1) / kPageTokens);
    sequence.pages.reserve(needed);
    sequence.addresses.reserve(needed);
    sequence.tail.reserve(kPageTokens);
    while (sequence.pages.size() < needed) {
      sequence.pages.push_back(cache_.take());
      sequence.addresses.push_back(KvCache::address(sequence.pages.back()));
    }
  }
}

// Tokens [begin, end) of a feed, which come next: the whole pages among them, for tile units.  Which those are depends
// on their positions alone, as long as a prompt is cut at ends of pages.
std::pair<std::size_t, std::size_t> Session::tiled_tokens(const Sequence& sequence, std::size_t count) const noexcept {
  const std::size_t first = static_cast<std::size_t>(sequence.length), left = (first + count) % kPageTokens;
  const std::size_t to_page = (kPageTokens - first % kPageTokens) % kPageTokens;
  if (!plan_.tiles() || to_page + kPageTokens + left > count) return {0, 0};
  return {to_page, count - left};
}

// The tokens are in the cache.  Names the pages they fill, but none that tile units would have computed and did not:
// pages of one name must be of the same bits, whoever filled them.
void Session::advance(Sequence& sequence, const std::vector<int32_t>& tokens) noexcept {
  const auto [begin, end] = tiled_tokens(sequence, tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    sequence.tail.push_back(tokens[i]);
    ++sequence.length;
    if (sequence.tail.size() < kPageTokens) continue;
    if (!plan_.tiles() || (begin <= i && i < end)) name_last_page(sequence);
    sequence.tail.clear();
  }
}

void Session::name_last_page(Sequence& sequence) noexcept {
  const std::size_t index = static_cast<std::size_t>(sequence.length / kPageTokens) - 1;
  KvCache::PageRef& page = sequence.pages[index];
  page = cache_.name(page, index == 0 ? nullptr : &sequence.pages[index - 1], sequence.tail.data());
  sequence.addresses[index] = KvCache::address(page);
}

// Rows of a step: first, for tile units, the tokens of every feed that are whole pages of the cache; then the others.
void Session::collect_rows(const std::vector<Feed>& feeds, std::vector<FeedResult>& results) {
  tokens_.clear();
  positions_.clear();
  runs_.clear();
  outputs_.clear();
  std::vector<std::pair<std::size_t, std::size_t>> pages(feeds.size());  // tokens [begin, end) of each feed
  for (std::size_t f = 0; f < feeds.size(); ++f) {
    const Feed& feed = feeds[f];
    const std::size_t count = feed.tokens.size();
    pages[f] = tiled_tokens(find(feed.sequence), count);
    collect_run(feeds, f, pages[f].first, pages[f].second);
    if (feed.want == Want::kScores) results[f].scores.resize(count);
    if (feed.want == Want::kLogits) results[f].logits.resize(count * static_cast<std::size_t>(plan_.vocabulary()));
  }
  tiled_ = static_cast<int64_t>(tokens_.size());
  for (std::size_t f = 0; f < feeds.size(); ++f) {
    collect_run(feeds, f, 0, pages[f].first);
    collect_run(feeds, f, pages[f].second, feeds[f].tokens.size());
  }
}

void Session::collect_run(const std::vector<Feed>& feeds, std::size_t f, std::size_t begin, std::size_t end) {
  if (begin == end) return;
  const Feed& feed = feeds[f];
  const Sequence& sequence = find(feed.sequence);
  const int64_t first = sequence.length + static_cast<int64_t>(begin);
  runs_.push_back(
      {static_cast<int64_t>(tokens_.size()), static_cast<int64_t>(end - begin), first, sequence.addresses.data()});
  for (std::size_t i = begin; i < end; ++i) {
    const bool wanted = feed.want == Want::kLogits || (feed.want == Want::kSample && i + 1 == feed.tokens.size()) ||
                        (feed.want == Want::kScores && feed.targets[i] >= 0);
    if (wanted) outputs_.push_back({static_cast<int32_t>(tokens_.size()), f, i});
    tokens_.push_back(feed.tokens[i]);
    positions_.push_back(sequence.length + static_cast<int64_t>(i));
  }
}

void Session::finish_output(const Feed& feed, FeedResult& result, const Output& output, const float* row) {
  const std::size_t vocabulary = static_cast<std::size_t>(plan_.vocabulary());
  const std::span<const float> logits(row, vocabulary);
  if (feed.want == Want::kSample) {
    result.sampled = find(feed.sequence).sampler->sample(logits);
  } else if (feed.want == Want::kScores) {
    result.scores[output.index] = static_cast<float>(log_probability(logits, feed.targets[output.index]));
  } else {
    std::copy(logits.begin(), logits.end(), result.logits.begin() + static_cast<int64_t>(output.index * vocabulary));
  }
}

void Session::compute(const std::vector<Feed>& feeds, std::vector<FeedResult>& results, const Step& step) {
  std::vector<std::optional<Error>> errors(outputs_.size());
  plan_.prepare(step);
  auto body = [&](int worker) noexcept {
    plan_.run(worker);
    int32_t rows[kHeadRows];
    for (std::size_t first = 0; first < outputs_.size(); first += kHeadRows) {
      const std::size_t count = std::min<std::size_t>(kHeadRows, outputs_.size() - first);
      for (std::size_t i = 0; i < count; ++i) rows[i] = outputs_[first + i].row;
      plan_.run_head(rows, static_cast<int64_t>(count), worker);
      plan_.phases().run(worker, static_cast<int64_t>(count), [&](int64_t i) {
        const std::size_t index = first + static_cast<std::size_t>(i);
        const Output& output = outputs_[index];
        try {
          finish_output(feeds[output.feed], results[output.feed], output, plan_.logits(i));
        } catch (const Error& error) {
          errors[index] = error;
        } catch (const std::bad_alloc&) {
          errors[index] = Error(Fault::kMemory, "no memory for the result of a step");
        }
      });
      plan_.end_outputs(static_cast<int64_t>(count), worker);
    }
  };
  const auto start = std::chrono::steady_clock::now();
  const bool slept = team_.run(body, crew_.active());
  const auto now = std::chrono::steady_clock::now();
  if (plan_.phases().abandoned()) throw Error(Fault::kCancelled, "the step was cancelled");
  crew_.report(static_cast<int>(step.rows), now - start, slept || plan_.phases().held_up(), now);
  for (std::size_t i = 0; i < errors.size(); ++i) {
    if (errors[i]) results[outputs_[i].feed].error = errors[i];
  }
}

std::vector<Session::OpTime> Session::profile() const {
  const std::lock_guard lock(mutex_);
  std::vector<OpTime> times;
  if (plan_.profile() == nullptr) return times;
  const std::vector<Op>& ops = program_->ops();
  for (const Profile::Stage stage : {Profile::kPrompt, Profile::kDecoding}) {
    for (std::size_t i = 0; i < ops.size(); ++i) {
      times.push_back({i + 1 == ops.size() ? "head" : ops[i].name, stage, plan_.profile()->time(i, stage)});
    }
    times.push_back({"sampling", stage, plan_.profile()->time(ops.size(), stage)});
  }
  return times;
}

std::vector<FeedResult> Session::step(const std::vector<Feed>& feeds, bool (*interrupted)() noexcept) {
  const std::lock_guard lock(mutex_);
  check(feeds);
  reserve_pages(feeds);
  std::vector<FeedResult> results(feeds.size());
  collect_rows(feeds, results);
  Watch watch{&cancel_, interrupted, std::chrono::steady_clock::now() + kInterruptInterval};
  const Step step{.rows = static_cast<int64_t>(tokens_.size()),
                  .tiled = tiled_,
                  .tokens = tokens_.data(),
                  .positions = positions_.data(),
                  .runs = runs_.data(),
                  .run_count = static_cast<int64_t>(runs_.size()),
                  .cancelled = &Watch::ask,
                  .cancel_context = &watch};
  cancel_.store(false);
  stepping_.store(true);
  try {
    compute(feeds, results, step);
  } catch (...) {
    stepping_.store(false);
    throw;
  }
  stepping_.store(false);
  for (std::size_t f = 0; f < feeds.size(); ++f) {
    if (!results[f].error) advance(find(feeds[f].sequence), feeds[f].tokens);
  }
  return results;
}

}  // namespace cpuinfer
