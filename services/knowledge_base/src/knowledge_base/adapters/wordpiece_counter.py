"""Counts tokens with the local embedding model's tokenizer."""

from pathlib import Path
from typing import Self

from tokenizers import Tokenizer

from knowledge_base.adapters.minilm_weights import find_model_files

__all__ = ["WordpieceCounter"]


class WordpieceCounter:
    """Estimates, on the safe side, the tokens that a narrator's vocabulary makes of a text.

    Counted are the pieces of BERT's 30,522-word vocabulary, which is smaller than those of present
    language models, so English gives more pieces here than there. What this tokenizer swallows and
    others do not is added: line breaks, every byte of a character beyond its first, and every
    character of what it only knows as unknown.

    Args:
        tokenizer: the tokenizer's JSON file.
    """

    name = "all-MiniLM-L6-v2 wordpiece, with a margin"

    def __init__(self, tokenizer: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._unknown = self._tokenizer.token_to_id("[UNK]")

    @classmethod
    def from_package(cls) -> Self:
        """Returns the counter on the installed model's tokenizer.

        Raises ModelFilesError when the model is not installed.
        """
        return cls(find_model_files().tokenizer)

    def count(self, text: str) -> int:
        """Returns the tokens of a text."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        unknown = sum(
            end - start
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == self._unknown
        )
        beyond_ascii = len(text.encode("utf-8", "replace")) - len(text)
        return len(encoding.ids) + unknown + beyond_ascii + text.count("\n")
