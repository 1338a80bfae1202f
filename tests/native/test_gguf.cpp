// The GGUF reader, the file it reads from and the text of its messages, on sound, cut, flipped and shrinking files.
#include <functional>
#include <limits>

#include "check.h"
#include "core/text.h"
#include "gguf_survey.h"

using cpuinfer::Error;
using cpuinfer::Fault;
using cpuinfer::Gguf;

namespace {

template <typename T>
void put(std::string& out, T number) {
  out.append(reinterpret_cast<const char*>(&number), sizeof number);
}

void put_string(std::string& out, std::string_view text) {
  put<uint64_t>(out, text.size());
  out += text;
}

void put_tensor(std::string& out, std::string_view name, std::initializer_list<uint64_t> shape, uint32_t type,
                uint64_t offset) {
  put_string(out, name);
  put<uint32_t>(out, static_cast<uint32_t>(shape.size()));
  for (const uint64_t size : shape) put(out, size);
  put(out, type);
  put(out, offset);
}

// Four keys, two tensors; the last byte is the last tensor's.
std::string sound_file() {
  std::string out = "GGUF";
  put<uint32_t>(out, 3);
  put<uint64_t>(out, 2);
  put<uint64_t>(out, 4);
  put_string(out, "name");
  put<uint32_t>(out, 8);
  put_string(out, "t\xC3\xA9st");
  put_string(out, "flag");
  put<uint32_t>(out, 7);
  put<uint8_t>(out, 1);
  put_string(out, "words");
  put<uint32_t>(out, 9);
  put<uint32_t>(out, 8);
  put<uint64_t>(out, 2);
  put_string(out, "one");
  put_string(out, "");
  put_string(out, "numbers");
  put<uint32_t>(out, 9);
  put<uint32_t>(out, 12);
  put<uint64_t>(out, 2);
  put<double>(out, 0.5);
  put<double>(out, -1);
  put_tensor(out, "first", {8}, 0, 0);
  put_tensor(out, "second", {32, 2}, 2, 32);
  out.resize((out.size() + 31) / 32 * 32);
  for (int i = 0; i < 32 + 36; ++i) out += static_cast<char>(i);
  return out;
}

std::string message(const std::function<void()>& act, Fault fault = Fault::kCheckpoint) {
  try {
    act();
  } catch (const Error& error) {
    return error.fault() == fault ? error.what() : "another fault";
  }
  return "no error";
}

bool says(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST("a sound file is read whole") {
  CHECK(survey(sound_file()));
  const MemoryFile file(sound_file());
  const Gguf gguf(file.path());
  CHECK_EQ(gguf.tensors().size(), 2u);
  uint8_t row[18];
  gguf.read_rows("second", 1, 2, row, sizeof row);
  CHECK_EQ(int{row[0]}, 32 + 18);
}

TEST("a file cut at any byte is refused") {
  const std::string whole = sound_file();
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) CHECK(!survey(std::string_view(whole).substr(0, bytes)));
}

TEST("a file with any bit flipped is sound or refused") {
  const std::string whole = sound_file();
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string content = whole;
    content[bit / 8] = static_cast<char>(content[bit / 8] ^ (1 << bit % 8));
    survey(content);
  }
}

TEST("a file with an extreme number at any place is sound or refused") {
  constexpr uint64_t kExtremes[] = {0,
                                    1,
                                    0x7FFFFFFF,
                                    0xFFFFFFFF,
                                    uint64_t{1} << 61,
                                    uint64_t{1} << 63,
                                    std::numeric_limits<uint64_t>::max() - 31,
                                    std::numeric_limits<uint64_t>::max()};
  const std::string whole = sound_file();
  for (std::size_t place = 0; place + 8 <= whole.size(); ++place) {
    for (const uint64_t number : kExtremes) {
      std::string content = whole;
      content.replace(place, 8, reinterpret_cast<const char*>(&number), 8);
      survey(content);
    }
  }
}

TEST("a header longer than the window is read across its seams") {
  std::string out = "GGUF";
  put<uint32_t>(out, 3);
  put<uint64_t>(out, 0);
  put<uint64_t>(out, 2);
  put_string(out, "words");
  put<uint32_t>(out, 9);
  put<uint32_t>(out, 8);
  put<uint64_t>(out, 200'000);
  for (int i = 0; i < 200'000; ++i) put_string(out, std::string(static_cast<std::size_t>(i % 23), 'x'));
  put_string(out, "last");
  put<uint32_t>(out, 4);
  put<uint32_t>(out, 77);
  const MemoryFile file(out);
  const Gguf gguf(file.path());
  CHECK_EQ(gguf.head().integer("last"), 77);
  uint64_t wrong = 0;
  gguf.read_strings(gguf.head().values[0], [&](uint64_t i, std::string_view text) { wrong += text.size() != i % 23; });
  CHECK_EQ(wrong, 0u);
}

TEST("rows out of range and buffers of another size are refused") {
  const MemoryFile file(sound_file());
  const Gguf gguf(file.path());
  uint8_t out[64];
  const auto read = [&](std::string_view name, int64_t begin, int64_t end, uint64_t bytes) {
    return [&gguf, &out, name, begin, end, bytes] { gguf.read_rows(name, begin, end, out, bytes); };
  };
  CHECK(says(message(read("second", -1, 1, 36), Fault::kInvalid), "rows -1 to 1, expected a range within 0 to 2"));
  CHECK(says(message(read("second", 0, 3, 54), Fault::kInvalid), "rows 0 to 3"));
  CHECK(says(message(read("second", 0, 2, 35), Fault::kInvalid), "a buffer of 35 bytes, expected 36"));
  CHECK(says(message(read("third", 0, 1, 1)), "tensor third: missing"));
  CHECK_EQ(message(read("second", 2, 2, 0)), "no error");
}

TEST("a file that shrinks while in use gives an error, not a signal") {
  const std::string whole = sound_file();
  const MemoryFile file(whole);
  const Gguf gguf(file.path());
  file.truncate(whole.size() - 10);
  CHECK(says(message([&] { read_everything(gguf); }), "expected 36 bytes, found 26: the file shrank from"));
  file.truncate(0);
  CHECK(says(message([&] { read_everything(gguf); }), "expected 13 bytes, found 0: the file shrank from"));
}

TEST("reading past the end of a file is refused before the call") {
  const MemoryFile memory("0123456789");
  const cpuinfer::File file(memory.path());
  char out[16];
  CHECK(says(message([&] { file.read(8, out, 3); }), "offset 8: expected 3 bytes, but the file has 10 in all"));
  CHECK(says(message([&] { file.read(UINT64_MAX, out, 2); }), "expected 2 bytes"));
  file.read(7, out, 3);
  CHECK_EQ(std::string(out, 3), "789");
  file.read(10, out, 0);
}

TEST("UTF-8 is told from what only looks like it") {
  for (const char* good : {"", "a", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
                           "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF", "na\xC3\xAFve"}) {
    CHECK(cpuinfer::is_utf8(good));
  }
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xC2", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xE2\x82",
                          "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "a\xC3"}) {
    CHECK(!cpuinfer::is_utf8(bad));
  }
}

TEST("messages show hostile bytes harmlessly") {
  CHECK_EQ(cpuinfer::printable("plain t\xC3\xA9xt"), "plain t\xC3\xA9xt");
  CHECK_EQ(cpuinfer::printable("\x1B[2J\n\x7F"), "\\x1b[2J\\x0a\\x7f");
  CHECK_EQ(cpuinfer::printable("\xC2\x9B\xFF\xC3"), "\\xc2\\x9b\\xff\\xc3");
  CHECK_EQ(cpuinfer::printable("abcdef", 3), "abc...");
  CHECK_EQ(cpuinfer::printable("ab\xC3\xA9", 3), "ab\xC3\xA9");
}

int main() { return check::run_all(); }
