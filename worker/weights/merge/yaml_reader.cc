#include "worker/weights/merge/yaml_reader.h"

#include <yaml-cpp/depthguard.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/parser.h>

#include <cmath>
#include <exception>
#include <set>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "worker/weights/merge/known_names.h"

namespace marcoro {
namespace {

constexpr size_t kMaxNodes = 200'000;

SourcePosition FromMark(const YAML::Mark& mark) { return {mark.line + 1, mark.column + 1}; }

// Passes over a document and remembers where it began.
class DocumentStart : public YAML::EventHandler {
 public:
  const YAML::Mark& mark() const { return mark_; }

  void OnDocumentStart(const YAML::Mark& mark) override { mark_ = mark; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}

 private:
  YAML::Mark mark_;
};

// There is one document and nothing after it. (Not by YAML::LoadAll, which never comes to an end of
// some texts that are no YAML.)
absl::Status CheckOneDocument(const std::string& text, const std::string& file) {
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  DocumentStart document;
  if (!parser.HandleNextDocument(document)) return ErrorAt(file, {1, 1}, "the file is empty");
  if (!parser.HandleNextDocument(document)) return absl::OkStatus();
  return ErrorAt(file, FromMark(document.mark()), "one document is expected, here is more");
}

std::string KindOf(const YAML::Node& node) {
  if (node.IsMap()) return "a mapping";
  if (node.IsSequence()) return "a list";
  if (node.IsScalar()) return Quoted(node.Scalar());
  return "nothing";
}

}  // namespace

absl::StatusOr<YAML::Node> ParseYaml(const std::string& text, const std::string& file) {
  absl::Status valid = CheckUtf8(text, file);
  if (!valid.ok()) return valid;
  try {
    absl::Status one = CheckOneDocument(text, file);
    if (!one.ok()) return one;
    return YAML::Load(text);
  } catch (const YAML::DeepRecursion& error) {
    return ErrorAt(file, FromMark(error.mark), "nested too deeply");
  } catch (const YAML::Exception& error) {
    return ErrorAt(file, FromMark(error.mark), absl::StrCat("not valid YAML: ", error.msg));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": not valid YAML: ", error.what()));
  }
}

void YamlReader::Fail(SourcePosition position, absl::string_view what) {
  if (status_.ok()) status_ = ErrorAt(file_, position, what);
}

SourcePosition YamlReader::PositionOf(const YAML::Node& node) { return FromMark(node.Mark()); }

void YamlReader::Count(const YAML::Node& node) {
  if (++nodes_ > kMaxNodes) Fail(PositionOf(node), "the document is too long");
}

std::vector<YamlReader::Entry> YamlReader::Mapping(const YAML::Node& node, std::string_view what) {
  Count(node);
  if (!status_.ok()) return {};
  if (!node.IsMap()) {
    Fail(PositionOf(node),
         absl::StrCat(std::string(what), " must be a mapping, is ", KindOf(node)));
    return {};
  }
  std::vector<Entry> entries;
  std::set<std::string> seen;
  for (const auto& pair : node) {
    const YAML::Node& key = pair.first;
    const YAML::Node& value = pair.second;
    Count(key);
    if (!key.IsScalar()) Fail(PositionOf(key), "a key must be a word");
    if (!status_.ok()) return {};
    if (!seen.insert(key.Scalar()).second) {
      Fail(PositionOf(key), absl::StrCat("key ", Quoted(key.Scalar()), " stands here twice"));
    }
    if (!value.IsNull()) entries.push_back({key.Scalar(), PositionOf(key), value});
  }
  return entries;
}

std::vector<YamlReader::Entry> YamlReader::Mapping(const YAML::Node& node, std::string_view what,
                                                   const std::vector<std::string_view>& known) {
  std::vector<Entry> entries = Mapping(node, what);
  for (const Entry& entry : entries) {
    bool found = false;
    for (const std::string_view name : known) found = found || name == entry.key;
    if (!found) {
      Fail(entry.position, absl::StrCat("unknown key ", Quoted(entry.key), " in ",
                                        std::string(what), " ", KnownNames(entry.key, known)));
    }
  }
  return entries;
}

std::vector<YAML::Node> YamlReader::List(const YAML::Node& node, std::string_view what,
                                         size_t most) {
  Count(node);
  if (!status_.ok()) return {};
  if (!node.IsSequence() || node.size() == 0) {
    const std::string found = node.IsSequence() ? "an empty one" : KindOf(node);
    Fail(PositionOf(node), absl::StrCat(std::string(what), " must be a list, is ", found));
    return {};
  }
  if (node.size() > most) {
    Fail(PositionOf(node), absl::StrCat(std::string(what), " has ", node.size(), " items, at most ",
                                        most, " are allowed"));
    return {};
  }
  return std::vector<YAML::Node>(node.begin(), node.end());
}

std::string YamlReader::Text(const YAML::Node& node, std::string_view what, size_t most) {
  Count(node);
  if (!status_.ok()) return "";
  if (!node.IsScalar() || node.Scalar().empty()) {
    Fail(PositionOf(node), absl::StrCat(std::string(what), " must be a text, is ", KindOf(node)));
    return "";
  }
  const std::string& text = node.Scalar();
  if (text.size() > most || text.find('\0') != std::string::npos) {
    Fail(PositionOf(node),
         absl::StrCat(std::string(what), " must be a text of at most ", most, " bytes"));
    return "";
  }
  return text;
}

uint64_t YamlReader::Integer(const YAML::Node& node, std::string_view what, uint64_t most) {
  Count(node);
  if (!status_.ok()) return 0;
  uint64_t number = 0;
  if (!node.IsScalar() || !absl::SimpleAtoi(node.Scalar(), &number) || number > most) {
    Fail(PositionOf(node), absl::StrCat(std::string(what), " must be an integer from 0 to ", most,
                                        ", is ", KindOf(node)));
    return 0;
  }
  return number;
}

bool YamlReader::IsBoolean(const YAML::Node& node) {
  bool value = false;
  return node.IsScalar() && node.Tag() != "!" && YAML::convert<bool>::decode(node, value);
}

double YamlReader::Number(const YAML::Node& node, std::string_view what) {
  Count(node);
  if (!status_.ok()) return 0;
  bool truth = false;
  if (IsBoolean(node) && YAML::convert<bool>::decode(node, truth)) return truth ? 1 : 0;
  double number = 0;
  if (!node.IsScalar() || !absl::SimpleAtod(node.Scalar(), &number) || !std::isfinite(number)) {
    Fail(PositionOf(node),
         absl::StrCat(std::string(what), " must be a finite number, is ", KindOf(node)));
    return 0;
  }
  return number;
}

}  // namespace marcoro
