"""Writes all-MiniLM-L6-v2 as an ONNX graph from its weights.

The architecture is BERT (Devlin et al. 2019) with 6 layers, 12 heads, width 384 and the exact (erf)
GELU, followed by mean pooling over the real tokens and L2 normalisation (Reimers & Gurevych 2019),
all inside the graph. The graph uses ONNX's standard operators only; onnxruntime fuses them.

    input_ids, attention_mask: int64 [batch, tokens]
    -> embedding: float32 [batch, 384]
       tokens: float32 [batch, tokens, 128], each token's last hidden state, projected, unit length

The projection keeps the principal directions of token vectors; `token_projection.npy` holds it as
int8 [384, 128], and benchmarks/knowledge_base/token_projection.py says how it was made.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors import safe_open

__all__ = ["GRAPH_FILE", "TOKEN_SIZE", "WEIGHTS_FILE", "GraphBuilder", "write_graph"]

GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "weights.bin"

LAYERS = 6
HEADS = 12
HIDDEN_SIZE = 384
HEAD_SIZE = HIDDEN_SIZE // HEADS
LAYER_NORM_EPSILON = 1e-12
EMBEDDINGS_NORM = "embeddings.LayerNorm"
TOKEN_SIZE = 128
# Operators of ONNX Runtime's own.
ONNXRUNTIME_DOMAIN = "com.microsoft"

_PROJECTION = Path(__file__).with_name("token_projection.npy")

# onnxruntime maps the weights file; mapped tensors start on page boundaries.
_ALIGNMENT_BYTES = 4096
_OPSET = 17
_IR_VERSION = 9


def write_graph(weights: Path, directory: Path) -> None:
    """Writes `GRAPH_FILE` and `WEIGHTS_FILE` into `directory` from a safetensors file.

    Raises OSError when it cannot be written.
    """
    with safe_open(str(weights), framework="numpy") as tensors:
        GraphBuilder(tensors).write(directory / GRAPH_FILE, directory / WEIGHTS_FILE)


class GraphBuilder:
    """Writes the graph; big tensors go to the weights file, small constants into the graph.

    Args:
        tensors: the weights by name, an open safetensors file.
        written: tensors in weights files beside the graph, which are used and not written again.
    """

    def __init__(self, tensors: Any, written: Iterable[TensorProto] = ()) -> None:
        self.nodes: list[Any] = []
        self._tensors = tensors
        self._initializers: dict[str, TensorProto] = {}
        self._written = {tensor.name: tensor for tensor in written}
        self._data: Any = None

    def write(self, graph: Path, data: Path) -> None:
        """Writes the graph and, beside it, its weights.

        Raises OSError when they cannot be written.
        """
        with data.open("wb") as self._data:
            self._build()
            self._data.flush()
            os.fsync(self._data.fileno())
        model = helper.make_model(
            helper.make_graph(
                self.nodes,
                "all-MiniLM-L6-v2",
                [
                    helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
                    for name in ("input_ids", "attention_mask")
                ],
                [
                    helper.make_tensor_value_info(
                        "embedding", TensorProto.FLOAT, ["batch", HIDDEN_SIZE]
                    ),
                    helper.make_tensor_value_info(
                        "tokens", TensorProto.FLOAT, ["batch", "tokens", TOKEN_SIZE]
                    ),
                ],
                initializer=list(self._initializers.values()),
            ),
            opset_imports=[
                helper.make_opsetid("", _OPSET),
                helper.make_opsetid(ONNXRUNTIME_DOMAIN, 1),
            ],
            ir_version=_IR_VERSION,
            producer_name="gamekeeper",
        )
        onnx.save_model(model, str(graph))

    def _build(self) -> None:
        hidden = self._layer_norm(self._embeddings(), EMBEDDINGS_NORM)
        additive_mask = self._additive_mask()
        for layer in range(LAYERS):
            hidden = self._layer(f"encoder.layer.{layer}", hidden, additive_mask)
        self._pool(hidden)
        self._project(hidden)

    def _embeddings(self) -> str:
        words = self._node(
            "Gather", self._weight("embeddings.word_embeddings.weight"), "input_ids", axis=0
        )
        shape = self._node("Shape", "input_ids")
        length = self._node("Gather", shape, self._integers("one_index", [1]), axis=0)
        positions = self._node(
            "Slice",
            self._weight("embeddings.position_embeddings.weight"),
            self._integers("slice_start", [0]),
            length,
        )
        # Single sentences only: the token type is always 0, so its embedding is a constant.
        token_type = self._tensors.get_tensor("embeddings.token_type_embeddings.weight")[0]
        summed = self._node("Add", words, positions)
        return self._node("Add", summed, self._constant("token_type_0", token_type))

    def _additive_mask(self) -> str:
        """Returns [batch, 1, 1, tokens]: 0 on real tokens, the lowest float on padding."""
        mask = self._node("Cast", "attention_mask", to=TensorProto.FLOAT)
        mask = self._node("Unsqueeze", mask, self._integers("mask_axes", [1, 2]))
        inverted = self._node("Sub", self._floats("one", 1.0), mask)
        return self._node("Mul", inverted, self._floats("lowest", float(np.finfo(np.float32).min)))

    def _layer(self, prefix: str, hidden: str, additive_mask: str) -> str:
        attention = f"{prefix}.attention"
        query = self._heads(f"{attention}.self.query", hidden, (0, 2, 1, 3))
        key = self._heads(f"{attention}.self.key", hidden, (0, 2, 3, 1))
        value = self._heads(f"{attention}.self.value", hidden, (0, 2, 1, 3))
        scores = self._node("MatMul", query, key)
        scores = self._node("Div", scores, self._floats("scale", HEAD_SIZE**0.5))
        scores = self._node("Add", scores, additive_mask)
        weights = self._node("Softmax", scores, axis=-1)
        context = self._node("MatMul", weights, value)
        context = self._node("Transpose", context, perm=(0, 2, 1, 3))
        context = self._node(
            "Reshape", context, self._integers("joined_heads", [0, 0, HIDDEN_SIZE])
        )
        attended = self._node("Add", self._dense(f"{attention}.output.dense", context), hidden)
        attended = self._layer_norm(attended, f"{attention}.output.LayerNorm")
        inner = self._gelu(self._dense(f"{prefix}.intermediate.dense", attended))
        out = self._node("Add", self._dense(f"{prefix}.output.dense", inner), attended)
        return self._layer_norm(out, f"{prefix}.output.LayerNorm")

    def _heads(self, name: str, hidden: str, order: tuple[int, ...]) -> str:
        split = self._node(
            "Reshape",
            self._dense(name, hidden),
            self._integers("split_heads", [0, 0, HEADS, HEAD_SIZE]),
        )
        return self._node("Transpose", split, perm=order)

    def _dense(self, name: str, hidden: str) -> str:
        product = self._node("MatMul", hidden, self._weight(f"{name}.weight", transposed=True))
        return self._node("Add", product, self._weight(f"{name}.bias"))

    def _gelu(self, hidden: str) -> str:
        inner = self._node("Div", hidden, self._floats("sqrt_2", 2.0**0.5))
        inner = self._node("Add", self._node("Erf", inner), self._floats("one", 1.0))
        inner = self._node("Mul", hidden, inner)
        return self._node("Mul", inner, self._floats("half", 0.5))

    def _layer_norm(self, hidden: str, name: str) -> str:
        return self._node(
            "LayerNormalization",
            hidden,
            self._weight(f"{name}.weight"),
            self._weight(f"{name}.bias"),
            axis=-1,
            epsilon=LAYER_NORM_EPSILON,
        )

    def _pool(self, hidden: str) -> None:
        mask = self._node("Cast", "attention_mask", to=TensorProto.FLOAT)
        mask = self._node("Unsqueeze", mask, self._integers("last_axis", [2]))
        tokens_axis = self._integers("tokens_axis", [1])
        total = self._node("ReduceSum", self._node("Mul", hidden, mask), tokens_axis, keepdims=0)
        # Mean and sum have one direction, so the norm makes dividing by the count superfluous.
        norm = self._node("ReduceL2", total, axes=[1], keepdims=1)
        norm = self._node("Max", norm, self._floats("tiny", 1e-12))
        self.nodes.append(helper.make_node("Div", [total, norm], ["embedding"]))

    def _project(self, hidden: str) -> None:
        # Scaled to about unit columns; what is left of the scale the norm takes out.
        projection = np.load(_PROJECTION).astype(np.float32) / 127
        projected = self._node("MatMul", hidden, self._constant("token_projection", projection))
        norm = self._node("ReduceL2", projected, axes=[2], keepdims=1)
        norm = self._node("Max", norm, self._floats("tiny", 1e-12))
        self.nodes.append(helper.make_node("Div", [projected, norm], ["tokens"]))

    # --- tensors ------------------------------------------------------------------------------

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def _weight(self, name: str, *, transposed: bool = False) -> str:
        array = self._tensors.get_tensor(name)
        return self._constant(name, array.T if transposed else array)

    def _integers(self, name: str, values: list[int]) -> str:
        return self._constant(name, np.array(values, dtype=np.int64))

    def _floats(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, dtype=np.float32))

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        if name in self._initializers:
            return name
        if name in self._written:
            self._initializers[name] = self._written[name]
            return name
        contiguous = np.ascontiguousarray(array)
        if contiguous.nbytes < _ALIGNMENT_BYTES:
            self._initializers[name] = onnx.numpy_helper.from_array(contiguous, name)
            return name
        self._data.write(b"\0" * (-self._data.tell() % _ALIGNMENT_BYTES))
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(contiguous.dtype),
            dims=contiguous.shape,
            data_location=TensorProto.EXTERNAL,
        )
        location = {
            "location": Path(self._data.name).name,
            "offset": self._data.tell(),
            "length": contiguous.nbytes,
        }
        for key, value in location.items():
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(contiguous.tobytes())
        self._initializers[name] = tensor
        return name
