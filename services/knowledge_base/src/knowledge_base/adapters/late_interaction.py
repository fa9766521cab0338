"""Reranking by the token vectors of the embedding model, without another model."""

import asyncio
from collections.abc import Sequence

import numpy as np

from knowledge_base.adapters.minilm_weights import MODEL_NAME
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.domain.late_interaction import (
    FINE,
    TokenCodes,
    met_share,
    rarity_weights,
    weights_of_parts,
)
from knowledge_base.domain.question_parts import question_parts
from knowledge_base.ports_reranker import PreparedPassages

__all__ = ["RERANKER", "LateInteraction"]

# Rises with the projection, so that codes of two kinds never meet; so do those of two forms.
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
        form: of the codes that are kept.
    """

    def __init__(self, model: OnnxEmbedder, form: TokenCodes = FINE) -> None:
        self._model = model
        self._form = form

    @property
    def name(self) -> str:
        """Names the reranker; stored beside what it keeps of passages."""
        return RERANKER if self._form is FINE else f"{RERANKER}-{self._form.bits}"

    @property
    def embedding_model(self) -> str:
        """The embedding model whose vectors `prepare` returns as well."""
        return MODEL_NAME

    async def prepare(self, texts: Sequence[str]) -> PreparedPassages:
        """Returns the codes of texts and their vectors, in the order given."""
        readings = await self._model.read_documents(texts)
        return PreparedPassages(
            tuple(self._form.encode(reading.tokens) for reading in readings),
            np.array([reading.vector for reading in readings], dtype=np.float32).reshape(
                len(readings), self._model.dimensions
            ),
        )

    async def score(self, query: str, passages: Sequence[bytes]) -> list[float]:
        """Returns the share of the query that each passage meets, 0..1, from their codes.

        A query that asks for several things is met by what meets one of them.
        """
        reading = await self._model.read_query(query)
        weights = weights_of_parts(
            rarity_weights(reading.ranks), reading.starts, question_parts(query)
        )
        components = sum(map(len, passages)) * 8 // self._form.bits
        if len(reading.tokens) * components <= _DONE_AT_ONCE:
            return met_share(reading.tokens, weights, passages, self._form)
        return await asyncio.to_thread(met_share, reading.tokens, weights, passages, self._form)

    def forget_texts(self) -> None:
        """Forgets the queries that were read lately."""
        self._model.forget_texts()
