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

struct Shape {
  int64_t hidden, heads, kv_heads, head_dim, feed_forward, vocabulary;
};
// Head sizes, groups and a vocabulary that are no multiple of a vector, a tile or a panel.
constexpr Shape kShapes[] = {
    {64, 4, 2, 16, 96, 269}, {96, 3, 1, 32, 32, 33}, {32, 2, 2, 10, 160, 7}, {96, 9, 1, 6, 64, 1}};
constexpr int64_t kContext = 70;

std::shared_ptr<const PackedMatrix> random_matrix(Encoding encoding, int64_t n, int64_t k) {
  const auto count = static_cast<std::size_t>(n * k);
  if (encoding == Encoding::kF32) {
    auto matrix = std::make_shared<PackedMatrix>(encoding, n, k);
    matrix->set_float_rows(0, n, normals(count, 0.2f).data());
    return matrix;
  }
  const bool nibbles = encoding == Encoding::kInt4;
  auto matrix = std::make_shared<PackedMatrix>(encoding, n, k, PackOptions{.zero = nibbles ? 8 : 128});
  std::vector<uint8_t> codes(count);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random_bits()() % (nibbles ? 16 : 256));
  const uint16_t scale = nibbles ? 0x2666 : 0x1666;  // about 0.025 and 0.0014
  matrix->set_integer_rows(0, n, codes.data(), std::vector<uint16_t>(count / kGroup, scale).data(), nullptr);
  return matrix;
}

std::shared_ptr<const Program> random_program(const Shape& s, Encoding encoding, int layers = 2) {
  Rope rope;
  for (int64_t i = 0; i < s.head_dim / 2; ++i) rope.inverse_frequency.push_back(std::pow(0.1, static_cast<double>(i)));
  auto program = std::make_shared<Program>(std::vector<Rope>{rope});
  const auto matrix = [&](int64_t n, int64_t k) { return random_matrix(encoding, n, k); };
  const Norm norm = ones(s.hidden);
  const auto table = matrix(s.vocabulary, s.hidden);
  ValueId x = embed(*program, table);
  for (int layer = 0; layer < layers; ++layer) {
    const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    const auto qkv =
        linears(*program, "qkv", x, norm, {matrix(q, s.hidden), matrix(kv, s.hidden), matrix(kv, s.hidden)});
    const ValueId a = attention(*program, qkv, {layer, s.heads, s.kv_heads, s.head_dim, 0.25f});
    // Integer weights take inputs by groups of 32 only.
    x = linears(*program, "o", a, {}, {random_matrix(q % kGroup == 0 ? encoding : Encoding::kF32, s.hidden, q)}, x)[0];
    const ValueId m = glu(*program, x, norm, matrix(s.feed_forward, s.hidden), matrix(s.feed_forward, s.hidden));
    x = linears(*program, "down", m, {}, {matrix(s.hidden, s.feed_forward)}, x)[0];
  }
  linears(*program, "head", x, norm, {table});
  return program;
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
  for (const Shape& shape : kShapes) {
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
  const Shape& shape = kShapes[0];
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
  const Shape& shape = kShapes[1];
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
  const Shape& shape = kShapes[0];
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
