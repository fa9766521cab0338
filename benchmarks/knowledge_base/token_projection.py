"""Makes the projection of token vectors that the model's graph holds.

    python benchmarks/knowledge_base/token_projection.py

Writes token_projection.npy, int8 [384, 128]: the 128 principal directions (without centring) of
the last hidden states of 6,000 whole words of the model's vocabulary, each read as a text of its
own, times 127 over the largest component. No graded text takes part. The columns' common scale
does not matter, since projected vectors are brought to unit length.

A new projection makes the stored token vectors worthless, so it needs a new name of the reranker
(`RERANKER` in knowledge_base.adapters.late_interaction).
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

import knowledge_base.adapters.minilm_graph as graph
from knowledge_base.adapters.minilm_weights import find_model_files

_WORDS = 6000
_SHORTEST_WORD = 4


def token_vectors() -> NDArray[np.float32]:
    """Returns unit vectors of words, shape [tokens, 384], from the graph before the projection."""
    files = find_model_files()
    tokenizer = Tokenizer.from_file(str(files.tokenizer))
    with tempfile.TemporaryDirectory(prefix="gamekeeper-projection-") as directory:
        graph.write_graph(files.weights, Path(directory))
        model = onnx.load(str(Path(directory) / graph.GRAPH_FILE), load_external_data=False)
        hidden = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(
                hidden.output[0], onnx.TensorProto.FLOAT, ["batch", "tokens", graph.HIDDEN_SIZE]
            )
        )
        onnx.save_model(model, str(Path(directory) / graph.GRAPH_FILE))
        session = onnxruntime.InferenceSession(
            str(Path(directory) / graph.GRAPH_FILE), providers=["CPUExecutionProvider"]
        )
        by_number = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        words = [word for word, _ in by_number if word.isalpha() and len(word) >= _SHORTEST_WORD]
        rows = []
        for word in words[:_WORDS]:
            ids = np.array([tokenizer.encode(word).ids], dtype=np.int64)
            (states,) = session.run(
                [hidden.output[0]], {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            )
            rows.append(states[0, 1:-1])
    vectors = np.concatenate(rows)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def main() -> None:
    """Writes the file beside the graph's writer."""
    directions = np.linalg.svd(token_vectors(), full_matrices=False)[2][: graph.TOKEN_SIZE].T
    scaled = np.rint(directions / np.abs(directions).max() * 127).astype(np.int8)
    target = Path(graph.__file__).with_name("token_projection.npy")
    np.save(target, scaled)
    print(f"{target.name}: {scaled.shape[0]} x {scaled.shape[1]}, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
