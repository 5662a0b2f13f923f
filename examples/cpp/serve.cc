// Serves README.md's compress.onnx: an onnxruntime session with nsa_onnx's operators, in C++.
//
//   serve MODEL     a model with inputs kv [128, 4, 64] and weight [32, 4], both float16
//
// Token t holds the number t everywhere and all weights are 1/32: each window becomes the mean of
// its tokens' numbers, and that is what is printed.
#include <nsa_onnx.h>
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <iostream>
#include <vector>

namespace {

constexpr std::array<int64_t, 3> kKvShape = {128, 4, 64};
constexpr std::array<int64_t, 2> kWeightShape = {32, 4};
constexpr size_t kTokenSize = 4 * 64;

void Serve(const char* path) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "serve");
  Ort::SessionOptions options;
  Ort::ThrowOnError(RegisterCustomOps(options, OrtGetApiBase()));
  Ort::Session session(env, path, options);

  std::vector<Ort::Float16_t> kv(128 * kTokenSize);
  for (size_t i = 0; i < kv.size(); ++i) kv[i] = Ort::Float16_t(float(i / kTokenSize));
  std::vector<Ort::Float16_t> weight(32 * 4, Ort::Float16_t(1.0f / 32));

  const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const std::array<Ort::Value, 2> inputs = {
      Ort::Value::CreateTensor<Ort::Float16_t>(cpu, kv.data(), kv.size(), kKvShape.data(), 3),
      Ort::Value::CreateTensor<Ort::Float16_t>(cpu, weight.data(), weight.size(),
                                               kWeightShape.data(), 2)};
  const char* const names[] = {"kv", "weight"};
  const Ort::AllocatedStringPtr output =
      session.GetOutputNameAllocated(0, Ort::AllocatorWithDefaultOptions());
  const char* const output_name = output.get();
  const std::vector<Ort::Value> results =
      session.Run(Ort::RunOptions(), names, inputs.data(), 2, &output_name, 1);
  const auto info = results[0].GetTensorTypeAndShapeInfo();
  const bool is_float16 = info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  if (!is_float16 || info.GetElementCount() % kTokenSize != 0)
    throw Ort::Exception("the output must be float16 [windows, 4, 64]", ORT_INVALID_ARGUMENT);
  const Ort::Float16_t* rows = results[0].GetTensorData<Ort::Float16_t>();
  for (size_t i = 0; i < info.GetElementCount() / kTokenSize; ++i)
    std::cout << rows[i * kTokenSize].ToFloat() << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Serve(argc > 1 ? argv[1] : "compress.onnx");
  } catch (const Ort::Exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
