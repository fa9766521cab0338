"""Sentence embeddings by all-MiniLM-L6-v2 in this process, through onnxruntime."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from knowledge_base.adapters.minilm_weights import MODEL_NAME, find_model_files
from knowledge_base.adapters.model_cache import Graphs, ensure_graphs
from knowledge_base.adapters.query_batches import QueryBatches

__all__ = ["OnnxEmbedder", "Reading"]

# What the model was trained for (its sentence_bert_config.json); the tokenizer's file says 128.
MAXIMUM_TOKENS = 256
# The vocabulary numbers words by frequency from here, "the"; below are letters, digits and signs.
_FIRST_WORD = 1996
# Attention costs memory by batch and square of length, and one core gains nothing from more:
# 256 took 15 % less CPU time than 512 and 28 % less than 1,024, and the least memory.
_PADDED_TOKENS_PER_RUN = 256
_QUERIES_WAITING = 64
_QUERIES_PER_BATCH = 16
_REMEMBERED_QUERIES = 256

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model makes of one text.

    Attributes:
        vector: the text's unit vector, shape [384].
        tokens: unit vectors of its tokens in order, without those that mark its ends, shape
            [count, 128].
        ranks: of its tokens by frequency in the model's vocabulary, shape [count]; single
            characters share the rank of the most frequent word, 1.
        starts: where its tokens begin in the text, in characters, shape [count].
    """

    vector: NDArray[np.float32]
    tokens: NDArray[np.float32]
    ranks: NDArray[np.int64]
    starts: NDArray[np.int64]


class OnnxEmbedder:
    """Embeds texts as unit vectors of 384 float32.

    Queries have a worker of their own and do not wait behind documents; those that come while it
    runs share its next run. They are read by a graph of their own that takes half the time; its
    vectors have a cosine of 0.999 to those of the same texts as documents. Runs for queries may
    have several threads, which shortens the wait and changes nothing of the vectors; documents are
    embedded by one thread a run, which costs the least processor time.

    Args:
        graphs: the ONNX graphs, see `ensure_graphs`.
        tokenizer: the tokenizer's JSON file.
        query_threads: threads of a run that embeds queries.
        document_runs: how many runs embed documents at once. Two runs of one thread each take two
            cores whole; one run of two threads does not.
    """

    def __init__(
        self, graphs: Graphs, tokenizer: Path, *, query_threads: int = 1, document_runs: int = 1
    ) -> None:
        self._session = _open_session(graphs.documents, 1)
        self._query_session = _open_session(graphs.queries, query_threads)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(MAXIMUM_TOKENS)
        self._tokenizer.no_padding()
        # One worker is left to queries while the others embed documents.
        self._executor = ThreadPoolExecutor(document_runs + 1, thread_name_prefix="embedder")
        self._documents = asyncio.Semaphore(document_runs)
        self._read_lately: OrderedDict[str, Reading] = OrderedDict()
        self._queries = QueryBatches(
            partial(self._submit, self._vectors),
            largest=_QUERIES_PER_BATCH,
            waiting=_QUERIES_WAITING,
        )

    @classmethod
    def from_package(
        cls, cache_directory: Path, *, query_threads: int = 1, document_runs: int = 1
    ) -> Self:
        """Returns an embedder on the installed weights, its graphs kept in `cache_directory`.

        Blocks for two seconds when the graphs must be written, else for 0.4 s.

        Raises:
            ModelFilesError: the weights are absent or not the published ones.
            OSError: the directory cannot be written.
        """
        files = find_model_files()
        return cls(
            ensure_graphs(files, cache_directory),
            files.tokenizer,
            query_threads=query_threads,
            document_runs=document_runs,
        )

    @property
    def model(self) -> str:
        """The model's name, stored beside what it embedded."""
        return MODEL_NAME

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        return 384

    async def embed_query(self, text: str) -> NDArray[np.float32]:
        """Returns the unit vector of one text, shape [384], ahead of waiting documents.

        Raises Overloaded when too many queries wait.
        """
        return await self._queries.embed(text)

    async def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the unit vectors of texts, shape [len(texts), 384], in the order given.

        Cancelling takes effect between two model runs.
        """
        rows = [reading.vector for reading in await self.read_documents(texts)]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dimensions)

    async def read_documents(self, texts: Sequence[str]) -> list[Reading]:
        """Returns what the model makes of texts, in the order given; as `embed_documents`."""
        readings: dict[int, Reading] = {}
        # Texts of like length share a run, so that little is padded.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))

        async def read(batch: Sequence[int]) -> None:
            async with self._documents:
                found = await self._submit(
                    partial(self._read, self._session), [texts[index] for index in batch]
                )
            readings.update(zip(batch, found, strict=True))

        start = 0
        async with asyncio.TaskGroup() as group:
            while start < len(order):
                batch = order[start : start + _batch_size(len(texts[order[start]]))]
                group.create_task(read(batch))
                start += len(batch)
        return [readings[index] for index in range(len(texts))]

    async def read_query(self, text: str) -> Reading:
        """Returns what the model makes of one text, ahead of waiting documents.

        A text that was embedded as a query lately needs no run.
        """
        known = self._read_lately.get(text)
        if known is None:
            (known,) = await self._submit(partial(self._read, self._query_session), [text])
            self._remember([text], [known])
        return known

    def forget_texts(self) -> None:
        """Forgets the queries that were read lately."""
        self._read_lately = OrderedDict()

    def close(self) -> None:
        """Waits for the run in progress, drops what waits."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.close)

    def _submit(
        self, run: Callable[[Sequence[str]], T], texts: Sequence[str]
    ) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._executor, run, texts)

    def _vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        readings = self._read(self._query_session, texts)
        self._remember(texts, readings)
        rows = [reading.vector for reading in readings]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dimensions)

    def _remember(self, texts: Sequence[str], readings: Sequence[Reading]) -> None:
        # Another thread may put another one in its place meanwhile, never empty this one.
        lately = self._read_lately
        lately.update(zip(texts, readings, strict=True))
        while len(lately) > _REMEMBERED_QUERIES:
            lately.popitem(last=False)

    def _read(self, session: onnxruntime.InferenceSession, texts: Sequence[str]) -> list[Reading]:
        encodings = [self._tokenizer.encode(text) for text in texts]
        readings: list[Reading] = []
        while len(readings) < len(encodings):
            left = encodings[len(readings) :]
            readings += _infer(session, left[: _run_size(left)])
        return readings


def _open_session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # What a run frees is kept for the next one (ONNX Runtime's arena), up to what two or three
    # of the largest runs need. Given back to the system, each run's memory comes as 2,000 page
    # faults: 9 % more processor time for documents, and no less memory (188 against 182 MB).
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Else threads wait for each other in a loop. Where the second core was free that gained nothing
    # (5.7 ms for a query of 15 tokens either way, 8.5 with one thread); where it was not, a thread
    # in a loop waited for one that had no core, and a run took 17 ms in place of 9.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _infer(session: onnxruntime.InferenceSession, encodings: Sequence[Encoding]) -> list[Reading]:
    longest = max(len(encoding.ids) for encoding in encodings)
    ids = np.zeros((len(encodings), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    vectors, tokens = session.run(
        ["embedding", "tokens"], {"input_ids": ids, "attention_mask": mask}
    )
    # Copied, since a view would keep the whole run's memory.
    readings = []
    for row, encoding in enumerate(encodings):
        inner = slice(1, len(encoding.ids) - 1)
        ranks = np.maximum(1, ids[row, inner] - _FIRST_WORD + 1)
        starts = np.array([start for start, _ in encoding.offsets[inner]], dtype=np.int64)
        readings.append(Reading(vectors[row].copy(), tokens[row, inner].copy(), ranks, starts))
    return readings


def _batch_size(characters: int) -> int:
    """Texts of about this many characters that fill a run, at some four characters a token."""
    return max(1, min(32, _PADDED_TOKENS_PER_RUN * 4 // max(characters, 1)))


def _run_size(encodings: Sequence[Encoding]) -> int:
    """How many of the first encodings fit into one run once padded to the longest of them."""
    longest = 0
    for count, encoding in enumerate(encodings):
        longest = max(longest, len(encoding.ids))
        if count and longest * (count + 1) > _PADDED_TOKENS_PER_RUN:
            return count
    return len(encodings)
