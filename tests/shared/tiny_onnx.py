"""A small image classifier as an ONNX file, written without torch's exporter (which takes 5 s)."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (12, 12, 1)
CLASSES = ("a", "b", "c")


def write(path: Path, *, seed: int = 0, gain: float = 6.0) -> Path:
    """Write two convolutions, a mean and a linear layer behind a fixed preparation."""
    random = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = random.normal(size=shape) * np.sqrt(2 / max(np.prod(shape[1:]), 1))
        return numpy_helper.from_array(values.astype(np.float32), name)

    scalars = [("centre", 0.25), ("spread", 0.25)]
    weights = [numpy_helper.from_array(np.float32(v), n) for n, v in scalars]
    weights += [weight("w1", 8, 1, 3, 3), weight("w2", 16, 8, 3, 3)]
    last = random.normal(size=(3, 16)).astype(np.float32) * gain
    weights += [numpy_helper.from_array(last, "w3")]
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "centre"], ["shifted"]),
        helper.make_node("Div", ["shifted", "spread"], ["prepared"]),
        helper.make_node("Conv", ["prepared", "w1"], ["c1"], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("Gemm", ["features", "w3"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
