// Runs a fuzz target as a GoogleTest program, where libFuzzer is not at hand.
//
//   x_fuzz_test [--runs=N] [--seed=S] [input file...]
//
// replays the files, then N mutations of them. When the target dies on an input, that input is
// printed in hex and saved as crash-<...> in $TEST_UNDECLARED_OUTPUTS_DIR or the current folder;
// give the file as argument, with
// --runs=0, to run it alone.

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tools/fuzz/mutator.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// The sanitizers', where there is one.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace fabricast::fuzz {
namespace {

struct Options {
  int runs = 20'000;
  uint64_t seed = 1;
  std::vector<std::string> files;
};

Options& GetOptions() {
  static Options* const options = new Options;
  return *options;
}

// What the handlers below need; they may only make system calls.
const std::string* running_input = nullptr;
std::string* running_name = nullptr;
std::array<char, 4096> crash_path = {};

void Print(const char* text, size_t size) {
  while (size > 0) {
    const ssize_t written = write(STDERR_FILENO, text, size);
    if (written <= 0) return;
    text += written;
    size -= static_cast<size_t>(written);
  }
}

void Print(const char* text) { Print(text, strlen(text)); }

void PrintHex(const std::string& input) {
  constexpr size_t kMaxPrinted = 1024;
  constexpr char kDigits[] = "0123456789abcdef";
  for (size_t i = 0; i < input.size() && i < kMaxPrinted; ++i) {
    const auto byte = static_cast<unsigned char>(input[i]);
    const char hex[] = {kDigits[byte >> 4], kDigits[byte & 15], i % 32 == 31 ? '\n' : ' '};
    Print(hex, sizeof(hex));
  }
  Print(input.size() > kMaxPrinted ? "... (the rest is in the file)\n" : "\n");
}

void ReportRunningInput() {
  if (running_input == nullptr) return;
  const std::string& input = *running_input;
  running_input = nullptr;
  Print("\nThe fuzz target died on this input (");
  Print(running_name->data(), running_name->size());
  Print("), in hex:\n");
  PrintHex(input);
  const int file = open(crash_path.data(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
  if (file >= 0 && write(file, input.data(), input.size()) == static_cast<ssize_t>(input.size())) {
    Print("Saved as ");
    Print(crash_path.data());
    Print("\n");
  }
}

void HandleSignal(int signal_number) {
  ReportRunningInput();
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

void InstallHandlers() {
  const char* folder = getenv("TEST_UNDECLARED_OUTPUTS_DIR");
  snprintf(crash_path.data(), crash_path.size(), "%s/crash-%d", folder ? folder : ".", getpid());

  // SIGTERM: the test's time is over, so the input hangs.
  std::vector<int> signals = {SIGABRT, SIGTERM};
  if (__sanitizer_set_death_callback != nullptr) {
    __sanitizer_set_death_callback(
        ReportRunningInput);  // It reports memory faults better than we would.
  } else {
    signals.insert(signals.end(), {SIGSEGV, SIGBUS, SIGFPE, SIGILL});
  }
  for (int signal_number : signals) signal(signal_number, HandleSignal);
}

void Feed(const std::string& input, const std::string& name) {
  *running_name = name;
  running_input = &input;
  // A copy of exactly this size, so that a sanitizer sees a read past the end.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  running_input = nullptr;
}

std::vector<std::string> ReadCorpus() {
  std::vector<std::string> corpus;
  for (const std::string& file : GetOptions().files) {
    std::ifstream in(file, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    EXPECT_TRUE(in) << file << ": cannot be read";
  }
  return corpus;
}

TEST(FuzzTest, SurvivesItsCorpus) {
  Feed("", "empty");
  const std::vector<std::string> corpus = ReadCorpus();
  for (size_t i = 0; i < corpus.size(); ++i) Feed(corpus[i], GetOptions().files[i]);
}

TEST(FuzzTest, SurvivesMutationsOfItsCorpus) {
  Mutator mutator(ReadCorpus(), GetOptions().seed);
  for (int i = 0; i < GetOptions().runs; ++i) {
    Feed(mutator.Next(),
         "mutation " + std::to_string(i) + " of --seed=" + std::to_string(GetOptions().seed));
  }
}

bool ParseOptions(int argc, char** argv) {
  Options& options = GetOptions();
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with("--runs=")) {
      options.runs = atoi(argument.c_str() + strlen("--runs="));
    } else if (argument.starts_with("--seed=")) {
      options.seed = strtoull(argument.c_str() + strlen("--seed="), nullptr, 10);
    } else if (argument.starts_with("-")) {
      std::cerr << argument << ": not known; usage: " << argv[0]
                << " [--runs=N] [--seed=S] [file...]\n";
      return false;
    } else {
      options.files.push_back(argument);
    }
  }
  return true;
}

}  // namespace
}  // namespace fabricast::fuzz

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!fabricast::fuzz::ParseOptions(argc, argv)) return 2;
  fabricast::fuzz::running_name = new std::string;
  fabricast::fuzz::InstallHandlers();
  return RUN_ALL_TESTS();
}
