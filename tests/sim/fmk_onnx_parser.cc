// libfmk_onnx_parser.so of the simulated CANN: the C++ symbols through which onnxruntime-cann hands
// a whole graph to the graph engine (enable_cann_graph=1). None is simulated: every call says so
// and fails.
//
// The class layouts are part of the interface: the provider creates and destroys these objects
// itself.
#include <map>
#include <memory>
#include <string>

#include "not_simulated.h"

#pragma GCC visibility push(default)
namespace ge {

using graphStatus = std::uint32_t;
constexpr graphStatus kFailed = 0xFFFFFFFF;

class AscendString {
 public:
  explicit AscendString(const char* name);
  bool operator<(const AscendString& other) const;

 private:
  std::shared_ptr<std::string> name_;
};

class Graph {
 public:
  explicit Graph(const char* name);

 private:
  std::shared_ptr<void> implementation_;
};

struct ModelBufferData;
using Options = std::map<AscendString, AscendString>;

AscendString::AscendString(const char* name) : name_(std::make_shared<std::string>(name)) {}
bool AscendString::operator<(const AscendString& other) const { return *name_ < *other.name_; }
Graph::Graph(const char*) {}

static graphStatus not_simulated(std::atomic_flag& said, const char* symbol) {
  nsa_sim::say_once(said, symbol);
  return kFailed;
}

#define NSA_SIM_GRAPH(name, parameters)              \
  graphStatus name parameters {                      \
    static std::atomic_flag said = ATOMIC_FLAG_INIT; \
    return not_simulated(said, "ge::" #name);        \
  }

NSA_SIM_GRAPH(aclgrphBuildInitialize, (Options&))
NSA_SIM_GRAPH(aclgrphParseONNXFromMem, (const char*, std::size_t, const Options&, Graph&))
NSA_SIM_GRAPH(aclgrphBuildModel, (const Graph&, const Options&, ModelBufferData&))
NSA_SIM_GRAPH(aclgrphSaveModel, (const char*, const ModelBufferData&))

void aclgrphBuildFinalize() {
  static std::atomic_flag said = ATOMIC_FLAG_INIT;
  nsa_sim::say_once(said, "ge::aclgrphBuildFinalize");
}

}  // namespace ge
#pragma GCC visibility pop
