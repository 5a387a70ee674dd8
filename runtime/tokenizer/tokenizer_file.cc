#include "runtime/tokenizer/tokenizer_file.h"

#include <algorithm>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/tokenizer/json_part.h"

namespace fabricast {
namespace {

using Json = nlohmann::json;

// Longer ones are no control tokens; it bounds what searching for them costs.
constexpr size_t kMaxAddedTokenBytes = 1024;

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, 80)),
                      text.size() > 80 ? "...\"" : "\"");
}

// Fills a TokenizerFile from a document.
class Reader {
 public:
  Reader(absl::string_view file, const Json& json)
      : document_{.file = std::string(file), .status = {}}, root_(document_, "", json) {}

  absl::StatusOr<TokenizerFile> Run() {
    root_.CheckObject("give a tokenizer.json of Hugging Face");
    // In the order in which a reader finds what kind it is.
    for (auto step : {&Reader::ReadVersion, &Reader::ReadModel, &Reader::ReadAddedTokens,
                      &Reader::ReadNormalizer, &Reader::ReadPreTokenizer,
                      &Reader::ReadPostProcessor, &Reader::ReadDecoder}) {
      if (!document_.status.ok()) return document_.status;
      (this->*step)();
    }
    if (!document_.status.ok()) return document_.status;
    return std::move(result_);
  }

 private:
  // The name of the part's kind; empty if it has none, which is an error.
  std::string TypeOf(const JsonPart& part) {
    if (!part.CheckObject("give an object with a type")) return "";
    return part["type"].Text();
  }

  // Calls `read` with `part`, or with each part of a Sequence, whose list is in `list`.
  template <typename Read>
  void ReadEach(const JsonPart& part, absl::string_view list, Read read) {
    if (!document_.status.ok()) return;
    const std::string type = TypeOf(part);
    if (type.empty()) return part["type"].Invalid("give the name of a type");
    if (type != "Sequence") return read(type, part);
    const JsonPart parts = part[list];
    const size_t count = parts.ArraySize("give a list of parts");
    for (size_t i = 0; i < count; ++i) ReadEach(parts[i], list, read);
  }

  void ReadVersion() {
    const JsonPart version = root_["version"];
    if (version.TextOr("1.0") != "1.0") version.Unimplemented("supported is version 1.0");
    // The reference cuts and fills up what it encodes then.
    for (absl::string_view field : {"truncation", "padding"}) {
      if (!root_[field].is_null()) root_[field].Unimplemented("not supported: set it to null");
    }
  }

  void ReadModel() {
    const JsonPart model = root_["model"];
    if (!model.CheckObject("give a model of type BPE")) return;
    if (model["type"].TextOr("BPE") != "BPE") {
      return model["type"].Unimplemented(
          "supported is byte-level BPE: use a tokenizer of that kind");
    }
    const JsonPart dropout = model["dropout"];
    if (!dropout.is_null() && dropout.json() != 0) {
      dropout.Unimplemented("encoding at random is not supported: set it to null");
    }
    for (absl::string_view field : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!model[field].TextOr("").empty()) {
        model[field].Unimplemented("supported is byte-level BPE, which has none: set it to null");
      }
    }
    if (model["byte_fallback"].BoolOr(false)) {
      model["byte_fallback"].Unimplemented("supported is byte-level BPE, which needs none");
    }
    result_.options.ignore_merges = model["ignore_merges"].BoolOr(false);
    result_.options.fuse_unknown = model["fuse_unk"].BoolOr(false);
    ReadVocabulary(model["vocab"]);
    if (document_.status.ok()) ReadMerges(model["merges"]);
    const JsonPart unknown = model["unk_token"];
    if (document_.status.ok() && !unknown.is_null()) {
      result_.options.unknown = FindId(unknown.Text());
      if (!result_.options.unknown.has_value()) {
        unknown.Invalid("not in model.vocab: add it there, or set it to null");
      }
    }
  }

  std::optional<int32_t> FindId(absl::string_view token) const {
    const auto it = ids_.find(token);
    if (it == ids_.end()) return std::nullopt;
    return it->second;
  }

  // Notes that `id` stands for `token`; an error at `part` if it stands for another.
  void TakeId(const JsonPart& part, int32_t id) {
    result_.size = std::max(result_.size, id + 1);
    if (taken_.size() < static_cast<size_t>(result_.size)) taken_.resize(result_.size);
    if (taken_[id]) return part.Invalid("the id of another token too: give each its own");
    taken_[id] = true;
  }

  void ReadVocabulary(const JsonPart& vocabulary) {
    if (!vocabulary.CheckObject("give an object of tokens and their ids")) return;
    if (vocabulary.json().empty()) return vocabulary.Invalid("give at least one token");
    result_.vocabulary.reserve(vocabulary.json().size());
    for (auto it = vocabulary.json().begin(); it != vocabulary.json().end(); ++it) {
      // The place is put together only for an error: there are 128,000 of them.
      const bool sound = it->is_number_unsigned() && it->get<uint64_t>() < kMaxTokens &&
                         !(it->get<size_t>() < taken_.size() && taken_[it->get<size_t>()]);
      if (sound) {
        const auto id = it->get<int32_t>();
        if (taken_.size() <= static_cast<size_t>(id))
          taken_.resize(2 * static_cast<size_t>(id) + 1);
        taken_[id] = true;
        result_.size = std::max(result_.size, id + 1);
        result_.vocabulary.emplace_back(it.key(), id);
        continue;
      }
      const JsonPart entry(document_, absl::StrCat("model.vocab[", Quoted(it.key()), "]"), *it);
      TakeId(entry, entry.Whole(0, kMaxTokens - 1));
      return;
    }
    ids_.reserve(result_.vocabulary.size());
    for (const auto& [token, id] : result_.vocabulary) ids_.emplace(token, id);
  }

  // "a b" or ["a", "b"].
  void ReadMerges(const JsonPart& merges) {
    const size_t count = merges.ArraySize("give a list of merges");
    result_.rules.reserve(count);
    for (size_t i = 0; i < count && document_.status.ok(); ++i) {
      const Json& merge = merges.json()[i];
      absl::string_view left;
      absl::string_view right;
      if (merge.is_string()) {
        const absl::string_view both = merge.get_ref<const std::string&>();
        if (absl::StartsWith(both, "#version")) continue;  // merges.txt begins with that
        const size_t space = both.find(' ');
        if (space == absl::string_view::npos || both.find(' ', space + 1) != both.npos) {
          return merges[i].Invalid("give two tokens with a space between them, or a list of two");
        }
        left = both.substr(0, space);
        right = both.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0].get_ref<const std::string&>();
        right = merge[1].get_ref<const std::string&>();
      } else {
        return merges[i].Invalid("give two tokens with a space between them, or a list of two");
      }
      const std::string joined = absl::StrCat(left, right);
      for (absl::string_view token : {left, right, absl::string_view(joined)}) {
        if (!ids_.contains(token)) {
          return merges[i].Invalid(
              absl::StrCat(Quoted(token),
                           " is not in model.vocab: add it there, or take the merge "
                           "out"));
        }
      }
      result_.rules.push_back({ids_[left], ids_[right], ids_[joined]});
    }
  }

  void ReadAddedTokens() {
    const JsonPart tokens = root_["added_tokens"];
    if (tokens.is_null()) return;
    absl::flat_hash_set<std::string> contents;
    const size_t count = tokens.ArraySize("give a list of added tokens");
    for (size_t i = 0; i < count && document_.status.ok(); ++i) {
      const JsonPart part = tokens[i];
      if (!part.CheckObject("give an object with id, content and flags")) return;
      AddedToken token = {.id = part["id"].Whole(0, kMaxTokens - 1),
                          .content = part["content"].Text(),
                          .single_word = part["single_word"].Bool(),
                          .lstrip = part["lstrip"].Bool(),
                          .rstrip = part["rstrip"].Bool(),
                          .normalized = part["normalized"].Bool(),
                          .special = part["special"].Bool()};
      if (!document_.status.ok()) return;
      if (token.content.empty()) continue;  // as the reference implementation does
      if (token.content.size() > kMaxAddedTokenBytes) {
        return part["content"].Invalid(absl::StrFormat("%d bytes: give at most %d",
                                                       token.content.size(), kMaxAddedTokenBytes));
      }
      if (!contents.insert(token.content).second) {
        return part["content"].Invalid("added twice: add it once");
      }
      const std::optional<int32_t> id = FindId(token.content);
      if (!id.has_value()) {
        TakeId(part["id"], token.id);
      } else if (*id != token.id) {
        part["id"].Invalid(absl::StrFormat("model.vocab gives %s the id %d: give the same",
                                           Quoted(token.content), *id));
      }
      result_.added_tokens.push_back(std::move(token));
    }
  }

  void ReadNormalizer() {
    const JsonPart normalizer = root_["normalizer"];
    if (normalizer.is_null()) return;
    ReadEach(normalizer, "normalizers", [this](const std::string& type, const JsonPart& part) {
      if (type == "NFC") {
        result_.nfc = true;
      } else {
        part["type"].Unimplemented("supported is NFC, or null for none");
      }
    });
  }

  void ReadPreTokenizer() {
    constexpr absl::string_view kMend =
        "supported are Split (a regular expression) and, as the "
        "last, ByteLevel";
    const JsonPart pre_tokenizer = root_["pre_tokenizer"];
    if (pre_tokenizer.is_null()) return pre_tokenizer.Unimplemented(kMend);
    bool byte_level = false;
    ReadEach(pre_tokenizer, "pretokenizers", [&](const std::string& type, const JsonPart& part) {
      if (byte_level || (type != "Split" && type != "ByteLevel")) {
        part["type"].Unimplemented(kMend);
      } else if (type == "Split") {
        ReadSplit(part);
      } else {
        byte_level = true;
        result_.add_prefix_space = part["add_prefix_space"].Bool();
        result_.split_gpt2 = part["use_regex"].BoolOr(true);
      }
    });
    if (document_.status.ok() && !byte_level) pre_tokenizer.Unimplemented(kMend);
  }

  void ReadSplit(const JsonPart& split) {
    const JsonPart behavior = split["behavior"];
    if (behavior.Text() != "Isolated") behavior.Unimplemented("supported is Isolated");
    if (split["invert"].Bool()) split["invert"].Unimplemented("supported is false");
    const JsonPart pattern = split["pattern"];
    if (!pattern.CheckObject("give {\"Regex\": ...}")) return;
    if (pattern["Regex"].is_null()) return pattern.Unimplemented("supported is {\"Regex\": ...}");
    absl::StatusOr<SplitPattern> compiled = SplitPattern::Compile(pattern["Regex"].Text());
    if (compiled.ok()) {
      result_.split.push_back(*std::move(compiled));
    } else {
      pattern["Regex"].Refuse(compiled.status());
    }
  }

  void ReadPostProcessor() {
    const JsonPart processor = root_["post_processor"];
    if (processor.is_null()) return;
    ReadEach(processor, "processors", [this](const std::string& type, const JsonPart& part) {
      if (type == "TemplateProcessing") {
        ReadTemplate(part);
      } else if (type != "ByteLevel") {  // which is about offsets only
        part["type"].Unimplemented("supported are TemplateProcessing and ByteLevel");
      }
    });
  }

  // The template of one sequence: special tokens, the text ("A"), special tokens.
  void ReadTemplate(const JsonPart& part) {
    std::vector<int32_t> before;
    std::vector<int32_t> after;
    bool has_text = false;
    const JsonPart pieces = part["single"];
    const size_t count = pieces.ArraySize("give a list of SpecialToken and Sequence");
    for (size_t i = 0; i < count && document_.status.ok(); ++i) {
      const JsonPart piece = pieces[i];
      if (!piece["SpecialToken"].is_null()) {
        ReadSpecialToken(piece["SpecialToken"]["id"], part["special_tokens"],
                         has_text ? after : before);
      } else if (!has_text && piece["Sequence"]["id"].json() == "A") {
        has_text = true;
      } else {
        piece.Unimplemented("supported are SpecialToken and, once, Sequence A");
      }
    }
    if (!document_.status.ok()) return;
    if (!has_text) return pieces.Unimplemented("supported are templates with Sequence A");
    // Of several templates, each puts its tokens around the result of those before.
    result_.prefix.insert(result_.prefix.begin(), before.begin(), before.end());
    result_.suffix.insert(result_.suffix.end(), after.begin(), after.end());
  }

  void ReadSpecialToken(const JsonPart& name, const JsonPart& special_tokens,
                        std::vector<int32_t>& ids) {
    const std::string token = name.Text();
    const JsonPart list = special_tokens[token]["ids"];
    if (list.is_null()) return name.Invalid("not in special_tokens: add it there, with its ids");
    const size_t count = list.ArraySize("give a list of ids");
    for (size_t i = 0; i < count; ++i) {
      const int32_t id = list[i].Whole(0, kMaxTokens - 1);
      if (id >= result_.size || !taken_[id]) list[i].Invalid("no such token: give one's id");
      ids.push_back(id);
    }
  }

  void ReadDecoder() {
    const JsonPart decoder = root_["decoder"];
    if (decoder["type"].json() != "ByteLevel") decoder.Unimplemented("supported is ByteLevel");
  }

  JsonPart::Document document_;
  JsonPart root_;
  TokenizerFile result_;
  std::vector<bool> taken_;  // ids
  absl::flat_hash_map<std::string, int32_t> ids_;
};

}  // namespace

absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view file, absl::string_view json) {
  if (json.size() > kMaxTokenizerBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d bytes: give a tokenizer.json of Hugging Face, at most %d", file,
                        json.size(), kMaxTokenizerBytes));
  }
  const absl::StatusOr<Json> parsed = ParseJson(file, json);
  if (!parsed.ok()) return parsed.status();
  return Reader(file, *parsed).Run();
}

}  // namespace fabricast
