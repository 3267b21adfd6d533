// What main dispatches to: one function per subcommand, in a file of its own.
#pragma once

#include <string>
#include <vector>

namespace marcoro {

// Each takes the arguments after its name and returns the exit code: 0, 1 for a failure, 2 for
// wrong usage.
int ServeCommand(const std::vector<std::string>& arguments);
int GenerateCommand(const std::vector<std::string>& arguments);
int ChatCommand(const std::vector<std::string>& arguments);
int ScoreCommand(const std::vector<std::string>& arguments);
int BenchCommand(const std::vector<std::string>& arguments);
int InspectCommand(const std::vector<std::string>& arguments);
int PullCommand(const std::vector<std::string>& arguments);
int EvalCommand(const std::vector<std::string>& arguments);
int MergeCommand(const std::vector<std::string>& arguments);
int QuantizeCommand(const std::vector<std::string>& arguments);

}  // namespace marcoro
