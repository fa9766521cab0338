"""Reads texts that are to be kept, for their vectors and for what a reranker keeps of them."""

from collections.abc import Sequence

from knowledge_base.ports import Embedder, TextCodes, Vector
from knowledge_base.ports_reranker import Reranker

__all__ = ["read_texts"]


async def read_texts(
    texts: Sequence[str], embedder: Embedder, reranker: Reranker | None
) -> tuple[Vector, TextCodes | None]:
    """Returns the vectors of texts and their codes, in one run of the model if both come of it."""
    if reranker is None:
        return await embedder.embed_documents(texts), None
    prepared = await reranker.prepare(texts)
    codes = TextCodes(reranker.name, prepared.codes)
    if prepared.vectors is not None and reranker.embedding_model == embedder.model:
        return prepared.vectors, codes
    return await embedder.embed_documents(texts), codes
