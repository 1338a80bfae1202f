// Sessions over small random models: shapes that fit no panel, several threads, cancelling, and pages used again.
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>

#include "core/error.h"
#include "kernel_cases.h"
#include "program_cases.h"
#include "runtime/session.h"

using namespace cpuinfer;

namespace {

// Head sizes, groups and a vocabulary that are no multiple of a vector, a tile or a panel.
constexpr LlamaShape kShapes[] = {
    {64, 4, 2, 16, 96, 269, 2}, {96, 3, 1, 32, 32, 33, 2}, {32, 2, 2, 10, 160, 7, 2}, {96, 9, 1, 6, 64, 1, 2}};
constexpr int64_t kContext = 70;

std::shared_ptr<const Program> random_program(const LlamaShape& shape, Encoding encoding) {
  return random_llama(shape, encoding, encoding);
}

SessionOptions options(int threads, int64_t rows, int64_t pages) {
  return {.limits = {.rows = rows, .context = kContext}, .threads = threads, .cache_pages = pages};
}

std::vector<int32_t> random_tokens(std::size_t count, int64_t vocabulary) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random_bits()() % static_cast<uint32_t>(vocabulary));
  return tokens;
}

std::shared_ptr<Sampler> sampler(int64_t vocabulary) {
  SamplerOptions options;
  options.seed = 7;
  return std::make_shared<Sampler>(options, static_cast<int32_t>(vocabulary));
}

// Logits of all tokens, fed in pieces.
std::vector<float> logits(Session& session, const std::vector<int32_t>& tokens, std::size_t piece) {
  const int64_t sequence = session.open(nullptr);
  std::vector<float> all;
  for (std::size_t i = 0; i < tokens.size(); i += piece) {
    const std::size_t count = std::min(piece, tokens.size() - i);
    Feed feed{sequence, {tokens.data() + i, tokens.data() + i + count}, Want::kLogits, {}};
    const std::vector<float> rows = session.step({feed}, nullptr)[0].logits;
    all.insert(all.end(), rows.begin(), rows.end());
  }
  session.close(sequence);
  return all;
}

bool faults(Fault expected, const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return error.fault() == expected;
  }
  return false;
}

}  // namespace

TEST("every shape gives the same bits on every kernel set, on any threads and in any pieces") {
  for (const LlamaShape& shape : kShapes) {
    for (const Encoding encoding : {Encoding::kInt4, Encoding::kInt8, Encoding::kF32}) {
      const auto program = random_program(shape, encoding);
      const auto tokens = random_tokens(kContext, shape.vocabulary);
      Session alone(program, scalar_set(), options(1, kContext, 3));
      const std::vector<float> expected = logits(alone, tokens, kContext);
      for (const float value : expected) CHECK(std::isfinite(value));
      for (const KernelSet& set : sets_under_test()) {
        Session session(program, set, options(3, kContext, 3));
        for (const std::size_t piece : {1, 17, 70}) {
          const std::vector<float> found = logits(session, tokens, piece);
          CHECK_EQ(found.size(), expected.size());
          check_same(found.data(), expected.data(), expected.size(), "logits");
        }
      }
    }
  }
}

TEST("a step of more sequences than a tile, sampling and scoring, is the same on any threads") {
  const LlamaShape& shape = kShapes[0];
  const auto program = random_program(shape, Encoding::kInt4);
  std::vector<std::vector<int32_t>> texts;
  for (std::size_t i = 0; i < 33; ++i) texts.push_back(random_tokens(1 + i % 7, shape.vocabulary));
  std::vector<float> first;
  for (const int threads : {1, 2, 3, 7}) {
    Session session(program, *sets_under_test().data(), options(threads, 512, 99));
    std::vector<Feed> feeds;
    for (const auto& text : texts) {
      const bool samples = feeds.size() % 2 == 0;
      feeds.push_back({session.open(sampler(shape.vocabulary)), text, samples ? Want::kSample : Want::kScores, text});
    }
    std::vector<float> all;
    for (int round = 0; round < 5; ++round) {
      for (const FeedResult& result : session.step(feeds, nullptr)) {
        all.push_back(static_cast<float>(result.sampled.token));
        all.insert(all.end(), result.scores.begin(), result.scores.end());
      }
    }
    if (first.empty()) first = all;
    check_same(all.data(), first.data(), first.size(), "samples and scores");
    for (const Feed& feed : feeds) session.close(feed.sequence);
    CHECK_EQ(session.cache().used(), 0);
  }
}

TEST("threads that step, cancel, open and close share a session") {
  const LlamaShape& shape = kShapes[1];
  Session session(random_program(shape, Encoding::kInt8), *sets_under_test().data(), options(2, 64, 99));
  const auto tokens = random_tokens(kContext, shape.vocabulary);
  const std::vector<float> expected = logits(session, tokens, 64);
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0}, cancelled{0};
  const auto work = [&] {
    for (int round = 0; round < 30; ++round) {
      const int64_t sequence = session.open(nullptr);
      std::vector<float> all;
      for (std::size_t i = 0; i < tokens.size();) {
        const Feed feed{sequence, {tokens[i]}, Want::kLogits, {}};
        try {
          const auto results = session.step({feed}, nullptr);
          all.insert(all.end(), results[0].logits.begin(), results[0].logits.end());
          ++i;
        } catch (const Error& error) {
          if (error.fault() != Fault::kCancelled) ++wrong;
          if (session.length(sequence) != static_cast<int64_t>(i)) ++wrong;
          ++cancelled;
        }
      }
      if (all.size() != expected.size() || std::memcmp(all.data(), expected.data(), all.size() * 4) != 0) ++wrong;
      session.close(sequence);
    }
  };
  std::thread canceller([&] {
    while (!stop) {
      session.cancel();
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  });
  std::vector<std::thread> workers;
  for (int i = 0; i < 3; ++i) workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();
  stop = true;
  canceller.join();
  CHECK_EQ(wrong.load(), 0);
  CHECK_EQ(session.cache().used(), 0);
}

TEST("a step that is interrupted, out of pages or past the context moves nothing") {
  const LlamaShape& shape = kShapes[0];
  Session session(random_program(shape, Encoding::kInt4), *sets_under_test().data(), options(2, 512, 2));
  const int64_t sequence = session.open(nullptr);
  const auto feed = [&](std::size_t count) {
    return std::vector<Feed>{{sequence, random_tokens(count, shape.vocabulary), Want::kNothing, {}}};
  };
  session.step(feed(30), nullptr);
  CHECK(faults(Fault::kMemory, [&] { session.step(feed(40), nullptr); }));
  CHECK(faults(Fault::kContextFull, [&] { session.step(feed(41), nullptr); }));
  CHECK_EQ(session.length(sequence), 30);
  session.step(feed(34), nullptr);  // both pages, to the last position
  CHECK_EQ(session.length(sequence), 64);
  session.close(sequence);
  CHECK_EQ(session.cache().used(), 0);
  CHECK(faults(Fault::kInvalid, [&] { session.close(sequence); }));
}

int main() { return check::run_all(); }
