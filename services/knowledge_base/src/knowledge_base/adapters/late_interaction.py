"""Reranking by the token vectors of the embedding model, without another model."""

import asyncio
from collections.abc import Sequence

import numpy as np

from knowledge_base.adapters.minilm_weights import MODEL_NAME
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.domain.late_interaction import encode_tokens, met_share, rarity_weights
from knowledge_base.ports_reranker import PreparedPassages

__all__ = ["RERANKER", "LateInteraction"]

# Rises with the projection and the form of the codes, so that codes of two kinds never meet.
RERANKER = "minilm-tokens-1"
# Multiplications, a millisecond and a half: what fifty passages take for a question of a sentence
# or two. Handing them to another thread and back would take half a millisecond more.
_DONE_AT_ONCE = 16_000_000


class LateInteraction:
    """The port `Reranker` by late interaction; see `domain.late_interaction`.

    A passage's tokens come from the same run of the model as its vector, so preparing costs no more
    than embedding; scoring costs one run for the query and a product of small matrices.

    Args:
        model: runs the model; it stays its owner's.
    """

    def __init__(self, model: OnnxEmbedder) -> None:
        self._model = model

    @property
    def name(self) -> str:
        """Names the reranker; stored beside what it keeps of passages."""
        return RERANKER

    @property
    def embedding_model(self) -> str:
        """The embedding model whose vectors `prepare` returns as well."""
        return MODEL_NAME

    async def prepare(self, texts: Sequence[str]) -> PreparedPassages:
        """Returns the codes of texts and their vectors, in the order given."""
        readings = await self._model.read_documents(texts)
        return PreparedPassages(
            tuple(encode_tokens(reading.tokens) for reading in readings),
            np.array([reading.vector for reading in readings], dtype=np.float32).reshape(
                len(readings), self._model.dimensions
            ),
        )

    async def score(self, query: str, passages: Sequence[bytes]) -> list[float]:
        """Returns the share of the query that each passage meets, 0..1, from their codes."""
        reading = await self._model.read_query(query)
        weights = rarity_weights(reading.ranks)
        if len(reading.tokens) * sum(map(len, passages)) <= _DONE_AT_ONCE:
            return met_share(reading.tokens, weights, passages)
        return await asyncio.to_thread(met_share, reading.tokens, weights, passages)

    def forget_texts(self) -> None:
        """Forgets the queries that were read lately."""
        self._model.forget_texts()
