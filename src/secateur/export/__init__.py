"""Export: a network as a file that runs without PyTorch, smaller and faster."""

from secateur.export.int8 import Int8Result, quantize_onnx
from secateur.export.onnx_file import OnnxResult, to_onnx
from secateur.export.openvino import OpenVinoResult, to_openvino
from secateur.export.runtime import Difference
from secateur.export.saved import export_saved

__all__ = [
    "Difference",
    "Int8Result",
    "OnnxResult",
    "OpenVinoResult",
    "export_saved",
    "quantize_onnx",
    "to_onnx",
    "to_openvino",
]
