// Packing tensors of GGUF files in threads of its own, while the caller does other things.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/gguf.h"
#include "kernels/pack.h"

namespace cpuinfer {

// A tensor whose rows are those of a matrix that has its own encoding.
struct PackJob {
  std::shared_ptr<const Gguf> file;
  std::string tensor;
  std::shared_ptr<PackedMatrix> matrix;
};

// Each thread reads and packs a stretch of the jobs from its beginning, a piece at a time, then the ends of others':
// near each other they would fault on the same huge page, and the system clears one for each of them before it takes
// one.
class Packing {
 public:
  // Starts the threads.  Throws Error(kInvalid) for a job that does not fit its matrix.
  Packing(std::vector<PackJob> jobs, int threads);
  ~Packing();  // whatever is not packed by then never is
  Packing(const Packing&) = delete;
  Packing& operator=(const Packing&) = delete;

  // Whether all is packed; waits for it no longer than this.  Throws what stopped a thread, of the earliest piece.
  bool wait(std::chrono::milliseconds most);
  // Ends the threads, whatever is left to do.
  void stop() noexcept;

 private:
  struct Piece {
    std::size_t job;
    int64_t row, rows;
  };

  // Pieces [begin, end), begin in the low half: those a thread has not begun.
  struct alignas(kCacheLine) Share {
    std::atomic<uint64_t> left{0};
  };

  void cut(std::size_t job);
  void share(std::size_t threads);
  bool claim(std::size_t thread, std::size_t& piece) noexcept;
  void work(std::size_t thread) noexcept;
  void pack(const Piece& piece, std::vector<uint8_t>& raw) const;

  std::vector<PackJob> jobs_;
  std::vector<Piece> pieces_;
  std::vector<Share> shares_;
  std::mutex mutex_;
  std::condition_variable ended_;
  int running_ = 0;             // threads; guarded by mutex_, as the failure is
  std::exception_ptr failure_;  // of piece failed_
  std::size_t failed_ = SIZE_MAX;
  std::vector<std::thread> threads_;
};

}  // namespace cpuinfer
