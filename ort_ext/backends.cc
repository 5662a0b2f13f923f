// nsa_ascend_backends of c_api.h: which ways of computing on an Ascend device this machine has.
#include <exception>
#include <string>
#include <tuple>
#include <vector>

#include "c_api/c_api.h"
#include "device/cann/backend.h"
#include "operators/list.h"

namespace nsa {
namespace {

std::vector<cann::Offer> OffersOfAllOperators() {
  std::vector<cann::Offer> all;
  const auto add = [&](const auto& offers) {
    for (const cann::Offer& offer : offers) all.push_back(offer);
  };
  std::apply([&](auto... op) { (add(decltype(op)::kBackends), ...); }, Operators());
  return all;
}

}  // namespace
}  // namespace nsa

const char* nsa_ascend_backends(void) {
  try {
    // Never destroyed: who asks at exit, or keeps the string, still has it.
    static const std::string& lines =
        *new const std::string(nsa::cann::DescribeBackends(nsa::OffersOfAllOperators()));
    return lines.c_str();
  } catch (const std::exception&) {  // out of memory
    return "";
  }
}
