// A checkpoint that takes a while to write, so that a program can be disturbed while it does.
#pragma once

#include <string>
#include <vector>

namespace marcoro {

// Writes config.json and a model.safetensors of about 40 MB (BF16) to the folder, which it makes.
// Other seeds give other numbers.
void WriteLargeModel(const std::string& folder, unsigned seed);

// Expects the same files with the same bytes in both folders.
void ExpectSameFiles(const std::string& folder, const std::string& expected);

// Starts the program with its arguments and sends the signal when the first file of weights in
// out.partial is finished. The exit code; 0 if the program was faster.
int SignalInTheMiddle(const std::vector<std::string>& arguments, const std::string& out, int signal,
                      std::string* err);

}  // namespace marcoro
