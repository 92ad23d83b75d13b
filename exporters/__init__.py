"""Exporters: graphs written as ONNX, StableHLO and SavedModel artifacts."""
