"""Running models: the native library, onnxruntime sessions, the CANN environment, the doctor."""
