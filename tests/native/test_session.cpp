// Sessions of a tiny random model: the same bits for any threads and batch, cancelling from another thread, pages
// reused.
#include <atomic>
#include <chrono>
#include <functional>
#include <random>
#include <thread>

#include "check.h"
#include "kernels/dispatch.h"
#include "program_cases.h"
#include "runtime/session.h"

using namespace cpuinfer;

namespace {

constexpr LlamaShape kShape{96, 3, 1, 32, 160, 101, 3};
constexpr int64_t kVocabulary = kShape.vocabulary;

std::shared_ptr<const Program> make_program() { return random_llama(kShape, Encoding::kInt4, Encoding::kInt8); }

SessionOptions options(int threads) {
  return {.limits = {.rows = 64, .context = 200}, .threads = threads, .cache_pages = 40};
}

std::vector<int32_t> text(int length, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(static_cast<std::size_t>(length));
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % kVocabulary);
  return tokens;
}

std::vector<float> logits(Session& session, const std::vector<int32_t>& tokens, std::size_t chunk) {
  const int64_t id = session.open(nullptr);
  std::vector<float> all;
  for (std::size_t at = 0; at < tokens.size(); at += chunk) {
    const std::size_t end = std::min(tokens.size(), at + chunk);
    Feed feed{id, {tokens.begin() + static_cast<long>(at), tokens.begin() + static_cast<long>(end)}, Want::kLogits, {}};
    const auto results = session.step({feed}, nullptr);
    all.insert(all.end(), results[0].logits.begin(), results[0].logits.end());
  }
  session.close(id);
  return all;
}

Fault fault_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.fault();
  }
  return Fault::kUnsupportedCpu;  // no fault at all: none of those expected
}

}  // namespace

TEST("logits do not depend on threads or on how a text is cut") {
  const auto program = make_program();
  const std::vector<int32_t> tokens = text(70, 2);
  Session alone(program, select_kernels(), options(1));
  const std::vector<float> expected = logits(alone, tokens, 64);
  for (const int threads : {1, 2, 3, 7}) {
    Session session(program, select_kernels(), options(threads));
    for (const std::size_t chunk : {1, 2, 17, 33, 64}) CHECK(logits(session, tokens, chunk) == expected);
  }
}

TEST("sequences of one step do not touch each other") {
  const auto program = make_program();
  Session session(program, select_kernels(), options(3));
  std::vector<Feed> feeds;
  std::vector<std::vector<float>> expected;
  for (const int length : {1, 2, 5, 17, 31}) {
    const std::vector<int32_t> tokens = text(length, static_cast<unsigned>(length));
    expected.push_back(logits(session, tokens, 64));
    feeds.push_back({session.open(nullptr), tokens, Want::kLogits, {}});
  }
  const auto results = session.step(feeds, nullptr);
  for (std::size_t i = 0; i < feeds.size(); ++i) CHECK(results[i].logits == expected[i]);
}

TEST("sampled sequences repeat with their seeds") {
  const auto program = make_program();
  std::vector<int32_t> first;
  for (const int threads : {1, 3}) {
    Session session(program, select_kernels(), options(threads));
    std::vector<Feed> feeds;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      SamplerOptions sampling;
      sampling.seed = seed;
      feeds.push_back({session.open(std::make_shared<Sampler>(sampling, kVocabulary)), {3}, Want::kSample, {}});
    }
    std::vector<int32_t> tokens;
    for (int step = 0; step < 10; ++step) {
      const auto results = session.step(feeds, nullptr);
      for (std::size_t i = 0; i < feeds.size(); ++i) {
        feeds[i].tokens = {results[i].sampled.token};
        tokens.push_back(results[i].sampled.token);
      }
    }
    if (first.empty()) first = tokens;
    CHECK(tokens == first);
  }
}

TEST("a step cancelled at any moment moves nothing and the next one is right") {
  const auto program = make_program();
  Session session(program, select_kernels(), options(3));
  const std::vector<int32_t> tokens = text(64, 4);
  const std::vector<float> expected = logits(session, tokens, 64);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop.load()) {
      session.cancel();
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  });
  int cancelled = 0;
  for (int i = 0; i < 50; ++i) {
    const int64_t id = session.open(nullptr);
    const Feed feed{id, tokens, Want::kLogits, {}};
    try {
      CHECK(session.step({feed}, nullptr)[0].logits == expected);
    } catch (const Error& error) {
      CHECK(error.fault() == Fault::kCancelled);
      CHECK_EQ(session.length(id), 0);
      ++cancelled;
    }
    session.close(id);
  }
  stop.store(true);
  other.join();
  CHECK(cancelled > 0);
  CHECK(logits(session, tokens, 64) == expected);
}

TEST("a step shorter than the interval is not interrupted") {
  Session session(make_program(), select_kernels(), options(2));
  const Feed feed{session.open(nullptr), text(64, 5), Want::kNothing, {}};
  const auto always = []() noexcept { return true; };
  // The first question comes after 50 ms; these steps are shorter, so none is asked.
  for (int i = 0; i < 2; ++i) session.step({feed}, always);
  CHECK_EQ(session.length(feed.sequence), 128);
}

TEST("pages are given back and a full cache is an error that takes nothing") {
  Session session(make_program(), select_kernels(), options(2));
  for (int round = 0; round < 5; ++round) {
    std::vector<int64_t> open;
    for (int i = 0; i < 20; ++i) {  // 20 x 2 pages: all there are
      open.push_back(session.open(nullptr));
      session.step({{open.back(), text(64, 6), Want::kNothing, {}}}, nullptr);
    }
    CHECK_EQ(session.cache().used(), 40);
    const int64_t more = session.open(nullptr);
    CHECK(fault_of([&] { session.step({{more, text(1, 6), Want::kNothing, {}}}, nullptr); }) == Fault::kMemory);
    CHECK_EQ(session.length(more), 0);
    session.close(more);
    for (const int64_t id : open) session.close(id);
    CHECK_EQ(session.cache().used(), 0);
  }
}

TEST("a prompt that begins as another did computes only the rest, to the same bits") {
  const auto program = make_program();
  SessionOptions with_reuse = options(2);
  with_reuse.kept_pages = 40;
  Session session(program, select_kernels(), with_reuse);
  for (const int length : {1, 17, 32, 33, 64, 65, 150}) {
    const std::vector<int32_t> tokens = text(length, 9);
    const std::vector<float> expected = logits(session, tokens, 64);  // names pages, takes none
    const int64_t id = session.open(nullptr);
    const int64_t reused = session.reuse(id, tokens);
    CHECK_EQ(reused, (length - 1) / kPageTokens * kPageTokens);
    CHECK_EQ(session.length(id), reused);
    std::vector<float> rest;
    for (std::size_t at = static_cast<std::size_t>(reused); at < tokens.size(); ++at) {
      const auto row = session.step({{id, {tokens[at]}, Want::kLogits, {}}}, nullptr)[0].logits;
      rest.insert(rest.end(), row.begin(), row.end());
    }
    CHECK(std::equal(rest.begin(), rest.end(), expected.begin() + reused * kVocabulary));
    CHECK(length == 1 || fault_of([&] { session.reuse(id, tokens); }) == Fault::kInvalid);
    session.close(id);
  }
  CHECK_EQ(session.cache().used(), 0);
}

TEST("what is in use at once may be of one beginning, each its own end") {
  const auto program = make_program();
  SessionOptions with_reuse = options(3);
  with_reuse.kept_pages = 7;
  Session alone(program, select_kernels(), options(1)), session(program, select_kernels(), with_reuse);
  std::vector<int32_t> tokens = text(65, 10);
  logits(session, tokens, 64);
  std::vector<Feed> feeds;
  std::vector<std::vector<float>> expected;
  for (int32_t last = 0; last < 10; ++last) {
    tokens.back() = last;
    const int64_t id = session.open(nullptr);
    CHECK_EQ(session.reuse(id, tokens), 64);
    feeds.push_back({id, {last}, Want::kLogits, {}});
    const std::vector<float> all = logits(alone, tokens, 64);
    expected.emplace_back(all.end() - kVocabulary, all.end());
  }
  CHECK_EQ(session.cache().used(), 2);
  const auto results = session.step(feeds, nullptr);
  CHECK_EQ(session.cache().used(), 12);
  for (std::size_t i = 0; i < feeds.size(); ++i) CHECK(results[i].logits == expected[i]);
}

TEST("what a caller may get wrong is refused") {
  Session session(make_program(), select_kernels(), options(2));
  const int64_t id = session.open(nullptr);
  const auto step = [&](Feed feed) { return fault_of([&] { session.step({std::move(feed)}, nullptr); }); };
  CHECK(step({id, {}, Want::kNothing, {}}) == Fault::kInvalid);
  CHECK(step({id, {kVocabulary}, Want::kNothing, {}}) == Fault::kInvalid);
  CHECK(step({id, {-1}, Want::kNothing, {}}) == Fault::kInvalid);
  CHECK(step({id, {1}, Want::kSample, {}}) == Fault::kInvalid);
  CHECK(step({id, {1}, Want::kScores, {}}) == Fault::kInvalid);
  CHECK(step({id, {1}, Want::kScores, {kVocabulary}}) == Fault::kInvalid);
  CHECK(step({id, text(65, 7), Want::kNothing, {}}) == Fault::kInvalid);
  CHECK(step({id + 1, {1}, Want::kNothing, {}}) == Fault::kInvalid);
  for (int i = 0; i < 4; ++i) session.step({{id, text(50, 8), Want::kNothing, {}}}, nullptr);
  CHECK(step({id, {1}, Want::kNothing, {}}) == Fault::kContextFull);
  CHECK(fault_of([&] { session.close(id + 1); }) == Fault::kInvalid);
}

TEST("what was computed without tile units before changes nothing of a text that is not reused, nor the reverse") {
  const KernelSet& amx = kernel_sets().front();
  if (!missing_for(amx, cpu_info()).empty()) return;
  const auto program = make_program();
  const auto tokens = text(200, 9);
  SessionOptions plain = options(2);
  plain.kept_pages = 30;
  SessionOptions tiled = plain;
  tiled.limits.tiles = true;
  Session by_rows(program, amx, plain), by_pages(program, amx, tiled), first(program, amx, tiled);
  const auto rows = logits(by_rows, tokens, 1), pages = logits(by_pages, tokens, 64);
  CHECK(logits(by_pages, tokens, 1) == rows);
  CHECK(logits(first, tokens, 1) == rows);
  CHECK(logits(first, tokens, 64) == pages);
  CHECK(logits(first, tokens, 32) == pages);
}

int main() { return check::run_all(); }
