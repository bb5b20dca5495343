"""Bundles in and out: safetensors to ONNX, and the proof that both say the same."""
