"""From image bytes to the outputs of a network: safe decode, boxes of views, the ONNX Runtime session, the stream."""
