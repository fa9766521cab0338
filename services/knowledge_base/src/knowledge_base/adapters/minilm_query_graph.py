"""Writes all-MiniLM-L6-v2 as an ONNX graph that reads queries with products of bytes.

A query is short, so what its run waits for is the weights: 43 MB of them as float32, 11 MB as int8.
The products of the six layers multiply int8 weights, a scale for each column, with uint8
activations, a scale for each token (vector-wise quantisation, Dettmers et al. 2022), so that what
else is in the run does not matter to a text. All else stays in float32. The inputs and outputs are
those of `minilm_graph`, whose weights file keeps what both graphs need.

- Of the activations after a layer's norm a few channels are far larger than others, which would be
  left with little precision. Each channel is divided by a factor and its row of weights multiplied
  by it (SmoothQuant, Xiao et al. 2023). The norm's own weights divide; what goes around the product
  by the residual connection is multiplied again. `hidden_ranges.npy` holds the channels' ranges,
  float16 [6, 2, 384]; benchmarks/knowledge_base/hidden_ranges.py says how they were made.
- Activations after the GELU are never below -0.17: most of a byte's values are for those above 0.
- Processors without VNNI add the products of two neighbouring rows in 16 bits, where
  2 * 255 * 127 does not fit. The scales are such that no pair of weights can reach that, so all
  processors have the same sums; it costs a fifth of a weight's precision.
- The norm before a product adds the bias of the product after it as well, since the residual
  connection takes it there; it is taken out of what the first product sees.

The operators are ONNX Runtime's own where it would not fuse standard ones by itself.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors import safe_open

from knowledge_base.adapters.minilm_graph import (
    EMBEDDINGS_NORM,
    GRAPH_FILE,
    HEADS,
    HIDDEN_SIZE,
    LAYER_NORM_EPSILON,
    LAYERS,
    ONNXRUNTIME_DOMAIN,
    GraphBuilder,
)

__all__ = ["QUERY_GRAPH_FILE", "QUERY_WEIGHTS_FILE", "int8_columns", "write_query_graph"]

QUERY_GRAPH_FILE = "query.onnx"
QUERY_WEIGHTS_FILE = "query_weights.bin"

_RANGES = Path(__file__).with_name("hidden_ranges.npy")
# How much of a channel's range its weights take over; 0.6 and 0.8 keep nearly as much precision.
_TAKEN_OVER = 0.7
# 255 * 128 fits into 16 bits; each of a pair of weights may be rounded up by a half.
_LARGEST_PAIR = 127
_HALF_BYTE = 127
_MIDDLE = 128
# The GELU's least value is -0.17: with 16 steps below 0 a token's scale is 2.54 / 239 at least.
_GELU_ZERO = 16
_GELU_STEPS = 239
_GELU_LEAST_RANGE = 2.54

Floats = NDArray[np.float64]


def write_query_graph(weights: Path, directory: Path) -> None:
    """Writes `QUERY_GRAPH_FILE` and `QUERY_WEIGHTS_FILE` beside what `write_graph` wrote.

    Raises OSError when it cannot be written.
    """
    documents = onnx.load_model(str(directory / GRAPH_FILE), load_external_data=False)
    written = [
        tensor
        for tensor in documents.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    with safe_open(str(weights), framework="numpy") as tensors:
        _QueryGraphBuilder(tensors, written).write(
            directory / QUERY_GRAPH_FILE, directory / QUERY_WEIGHTS_FILE
        )


def int8_columns(weights: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Returns int8 weights and the scale of each column, shape [columns].

    Of rows 2n and 2n + 1, the weights of one sign in a column have a sum of 128 at most.
    """
    sums = [np.maximum(part[0::2], 0) + np.maximum(part[1::2], 0) for part in (weights, -weights)]
    scales = np.maximum(*sums).max(axis=0) / _LARGEST_PAIR
    return np.rint(weights / scales).astype(np.int8), scales


class _QueryGraphBuilder(GraphBuilder):
    def _build(self) -> None:
        ranges = np.load(_RANGES).astype(np.float64)
        mask = self._node("Cast", "attention_mask", to=TensorProto.INT32)
        hidden, norm = self._embeddings(), EMBEDDINGS_NORM
        for layer in range(LAYERS):
            prefix = f"encoder.layer.{layer}"
            hidden = self._attention(prefix, hidden, norm, ranges[layer, 0], mask)
            norm = f"{prefix}.attention.output.LayerNorm"
            hidden = self._feed_forward(prefix, hidden, norm, ranges[layer, 1])
            norm = f"{prefix}.output.LayerNorm"
        hidden = self._layer_norm(hidden, norm)
        self._pool(hidden)
        self._project(hidden)

    def _attention(self, prefix: str, hidden: str, norm: str, ranges: Floats, mask: str) -> str:
        first = f"{prefix}.attention.self"
        last = f"{prefix}.attention.output.dense"
        names = [f"{first}.{part}" for part in ("query", "key", "value")]
        normed, around, weights, bias = self._normed(names, last, (hidden, norm), ranges)
        joined = self._product(first, normed, weights)
        heads = [f"{first}.{part}" for part in ("queries", "keys", "values")]
        self.nodes.append(
            helper.make_node(
                "Split", [joined, self._integers("thirds", [HIDDEN_SIZE] * 3)], heads, axis=2
            )
        )
        context = self._own("MultiHeadAttention", *heads, bias, mask, num_heads=HEADS)
        return self._node("Add", self._product(last, context, self._matrix(last)), around)

    def _feed_forward(self, prefix: str, hidden: str, norm: str, ranges: Floats) -> str:
        first, last = f"{prefix}.intermediate.dense", f"{prefix}.output.dense"
        normed, around, weights, bias = self._normed([first], last, (hidden, norm), ranges)
        inner = self._own("BiasGelu", self._product(first, normed, weights), bias)
        product = self._product(last, inner, self._matrix(last), after_gelu=True)
        return self._node("Add", product, around)

    def _normed(
        self, parts: list[str], last: str, normed: tuple[str, str], ranges: Floats
    ) -> tuple[str, str, Floats, str]:
        """Returns the norm's output, its way around, what to multiply it by and to add then.

        Args:
            parts: the dense layers whose weights are joined, to read the norm's output.
            last: the dense layer whose product meets the way around, and brings no bias.
            normed: what the norm reads, and its name.
            ranges: of the norm's channels, shape [384].
        """
        hidden, norm = normed
        weights = np.concatenate([self._matrix(part) for part in parts], axis=1)
        last_bias = self._tensor(f"{last}.bias")
        bias = np.concatenate([self._tensor(f"{part}.bias") for part in parts])
        bias -= last_bias @ weights
        factors = ranges**_TAKEN_OVER / np.abs(weights).max(axis=1) ** (1 - _TAKEN_OVER)
        output = self._node(
            "LayerNormalization",
            hidden,
            self._float32(f"{norm}.weight_divided", self._tensor(f"{norm}.weight") / factors),
            self._float32(
                f"{norm}.bias_divided", (self._tensor(f"{norm}.bias") + last_bias) / factors
            ),
            axis=-1,
            epsilon=LAYER_NORM_EPSILON,
        )
        around = self._node("Mul", output, self._float32(f"{norm}.factors", factors))
        return (
            output,
            around,
            weights * factors[:, None],
            self._float32(f"{parts[0]}.bias_joined", bias),
        )

    def _product(self, name: str, hidden: str, weights: Floats, *, after_gelu: bool = False) -> str:
        """Returns float32 activations times weights, both taken as bytes."""
        if after_gelu:
            largest = self._node("ReduceMax", hidden, axes=[-1], keepdims=1)
            largest = self._node("Max", largest, self._floats("gelu_range", _GELU_LEAST_RANGE))
            steps, zero = _GELU_STEPS, _GELU_ZERO
        else:
            largest = self._node("ReduceMax", self._node("Abs", hidden), axes=[-1], keepdims=1)
            steps, zero = _HALF_BYTE, _MIDDLE
        zero_point = self._constant(f"zero_{zero}", np.array(zero, dtype=np.uint8))
        step = self._floats(f"1/{steps}", 1 / steps)
        codes = self._node("QuantizeLinear", self._node("Div", hidden, largest), step, zero_point)
        columns, scales = int8_columns(weights)
        product = self._own(
            "MatMulIntegerToFloat",
            codes,
            self._constant(f"{name}.int8", columns),
            step,
            self._float32(f"{name}.scales", scales),
            zero_point,
        )
        return self._node("Mul", product, largest)

    def _own(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self._node(operator, *inputs, domain=ONNXRUNTIME_DOMAIN, **attributes)

    def _tensor(self, name: str) -> Floats:
        return np.asarray(self._tensors.get_tensor(name), dtype=np.float64)

    def _matrix(self, name: str) -> Floats:
        return self._tensor(f"{name}.weight").T

    def _float32(self, name: str, array: Floats) -> str:
        return self._constant(name, array.astype(np.float32))
