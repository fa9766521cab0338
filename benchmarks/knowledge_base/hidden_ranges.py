"""Makes the ranges of hidden channels by which the graph for queries is made.

    python benchmarks/knowledge_base/hidden_ranges.py

Writes hidden_ranges.npy, float16 [6, 2, 384]: the largest magnitude of each channel after the norm
before a layer's attention and before its feed-forward part, over 500 texts of 4 to 14 words drawn
from the model's vocabulary. No graded text takes part.
"""

import tempfile
from pathlib import Path
from random import Random

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

import knowledge_base.adapters.minilm_graph as graph
from knowledge_base.adapters.minilm_weights import find_model_files

_TEXTS = 500
_WORDS = 8000
_SHORTEST_WORD = 2
_SHORTEST_TEXT, _LONGEST_TEXT = 4, 14
_SEED = 1


def texts(tokenizer: Tokenizer) -> list[str]:
    """Returns texts of words drawn from the model's vocabulary, the same each time."""
    by_number = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [word for word, _ in by_number if word.isalpha() and len(word) >= _SHORTEST_WORD]
    random = Random(_SEED)  # noqa: S311  # a sample, not a secret
    return [
        " ".join(random.choices(words[:_WORDS], k=random.randint(_SHORTEST_TEXT, _LONGEST_TEXT)))
        for _ in range(_TEXTS)
    ]


def ranges() -> NDArray[np.float32]:
    """Returns the largest magnitudes, shape [layers, 2, channels]."""
    files = find_model_files()
    tokenizer = Tokenizer.from_file(str(files.tokenizer))
    with tempfile.TemporaryDirectory(prefix="gamekeeper-ranges-") as directory:
        graph.write_graph(files.weights, Path(directory))
        path = str(Path(directory) / graph.GRAPH_FILE)
        model = onnx.load(path, load_external_data=False)
        # The last norm is followed by no layer.
        norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"][:-1]
        for norm in norms:
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(
                    norm.output[0], onnx.TensorProto.FLOAT, ["batch", "tokens", graph.HIDDEN_SIZE]
                )
            )
        onnx.save_model(model, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        largest = np.zeros((len(norms), graph.HIDDEN_SIZE), dtype=np.float32)
        for text in texts(tokenizer):
            ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
            states = session.run(
                [norm.output[0] for norm in norms],
                {"input_ids": ids, "attention_mask": np.ones_like(ids)},
            )
            largest = np.maximum(largest, [np.abs(state[0]).max(axis=0) for state in states])
    return largest.reshape(graph.LAYERS, 2, graph.HIDDEN_SIZE)


def main() -> None:
    """Writes the file beside the graph's writer."""
    target = Path(graph.__file__).with_name("hidden_ranges.npy")
    np.save(target, ranges().astype(np.float16))
    print(f"{target.name}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
