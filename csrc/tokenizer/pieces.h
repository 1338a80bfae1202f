// The pieces of a SentencePiece vocabulary as its model file has them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace cpuinfer {

// Appends one piece, the message SentencePiece of sentencepiece_model.proto, in protocol buffers' wire format.
void append_piece(std::string& out, std::string_view text, float score, uint32_t type);

}  // namespace cpuinfer
