// Threads that claim pieces of tensors, read them and pack them.
#include "load/packing.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace cpuinfer {

namespace {

// Bytes read at once: they are still in the second cache when they are packed.
constexpr int64_t kPiece = int64_t{256} << 10;

void pack_rows(PackedMatrix& matrix, int64_t row, int64_t rows, const uint8_t* raw) {
  if (is_float(matrix.view().encoding)) {
    matrix.set_float_rows(row, rows, raw);
  } else {
    matrix.set_block_rows(row, rows, raw);
  }
}

}  // namespace

Packing::Packing(std::vector<PackJob> jobs, int threads) : jobs_(std::move(jobs)) {
  for (std::size_t job = 0; job < jobs_.size(); ++job) cut(job);
  const auto wanted = std::min(static_cast<std::size_t>(std::max(threads, 1)), pieces_.size());
  share(wanted);
  threads_.reserve(wanted);
  running_ = static_cast<int>(wanted);
  for (std::size_t i = 0; i < wanted; ++i) {
    try {
      threads_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error& error) {
      const std::lock_guard lock(mutex_);
      running_ -= static_cast<int>(wanted - i);
      if (i > 0) break;  // fewer do, too
      throw Error(Fault::kInvalid, std::string("the system refused a thread to pack weights with: ") + error.what());
    }
  }
}

Packing::~Packing() { stop(); }

void Packing::stop() noexcept {
  for (Share& share : shares_) share.left.store(0);
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Packing::cut(std::size_t index) {
  const PackJob& job = jobs_[index];
  const Weights& w = job.matrix->view();
  const GgufTensor& tensor = job.file->find(job.tensor);
  if (!(is_float(w.encoding) || job.matrix->takes_blocks()) || tensor.rows != static_cast<uint64_t>(w.n) ||
      tensor.row_bytes != static_cast<uint64_t>(job.matrix->row_bytes())) {
    throw Error(Fault::kInvalid, "tensor " + job.tensor + ": " + std::to_string(tensor.rows) + " rows of " +
                                     std::to_string(tensor.row_bytes) + " bytes, expected " + std::to_string(w.n) +
                                     " of " + std::to_string(job.matrix->row_bytes()) + " for a matrix of " +
                                     encoding_name(w.encoding));
  }
  const int64_t panel = job.matrix->row_bytes() * kLanes;
  const int64_t rows = std::max<int64_t>(1, kPiece / panel) * kLanes;
  for (int64_t row = 0; row < w.n; row += rows) pieces_.push_back({index, row, std::min(rows, w.n - row)});
}

void Packing::pack(const Piece& piece, std::vector<uint8_t>& raw) const {
  const PackJob& job = jobs_[piece.job];
  raw.resize(static_cast<std::size_t>(piece.rows * job.matrix->row_bytes()));
  job.file->read_rows(job.tensor, piece.row, piece.row + piece.rows, raw.data(), raw.size());
  pack_rows(*job.matrix, piece.row, piece.rows, raw.data());
}

// Stretches of about as many rows' bytes.
void Packing::share(std::size_t threads) {
  shares_ = std::vector<Share>(threads);
  int64_t bytes = 0, before = 0;
  const auto size = [this](const Piece& piece) { return piece.rows * jobs_[piece.job].matrix->row_bytes(); };
  for (const Piece& piece : pieces_) bytes += size(piece);
  std::size_t end = 0;
  for (std::size_t thread = 0; thread < threads; ++thread) {
    const std::size_t begin = end;
    const int64_t until = bytes / static_cast<int64_t>(threads) * static_cast<int64_t>(thread + 1);
    while (end < pieces_.size() && (thread + 1 == threads || before < until)) before += size(pieces_[end++]);
    shares_[thread].left.store(uint64_t{end} << 32 | begin);
  }
}

// The next piece of a thread's own share, or else the last of another's.
bool Packing::claim(std::size_t thread, std::size_t& piece) noexcept {
  for (std::size_t i = 0; i < shares_.size(); ++i) {
    std::atomic<uint64_t>& left = shares_[(thread + i) % shares_.size()].left;
    uint64_t range = left.load();
    while (static_cast<uint32_t>(range) < range >> 32) {
      const bool own = i == 0;
      if (left.compare_exchange_weak(range, own ? range + 1 : range - (uint64_t{1} << 32))) {
        piece = own ? static_cast<uint32_t>(range) : (range >> 32) - 1;
        return true;
      }
    }
  }
  return false;
}

void Packing::work(std::size_t thread) noexcept {
  std::vector<uint8_t> raw;
  std::size_t piece = 0;
  try {
    while (claim(thread, piece)) pack(pieces_[piece], raw);
  } catch (...) {
    for (Share& share : shares_) share.left.store(0);
    const std::lock_guard lock(mutex_);
    if (piece < failed_) {
      failed_ = piece;
      failure_ = std::current_exception();
    }
  }
  const std::lock_guard lock(mutex_);
  if (--running_ == 0) ended_.notify_all();
}

bool Packing::wait(std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  if (!ended_.wait_for(lock, most, [this] { return running_ == 0; })) return false;
  if (failure_) std::rethrow_exception(failure_);
  return true;
}

}  // namespace cpuinfer
