"""How many tokens a text takes, where no tokenizer is at hand."""

__all__ = ["ByteTokenCounter"]

# Byte-pair vocabularies make a token of four bytes of English on average; three leaves a margin.
_BYTES_PER_TOKEN = 3


class ByteTokenCounter:
    """Counts a token for every three bytes of UTF-8, rounded up."""

    name = "bytes/3"

    def count(self, text: str) -> int:
        """Returns the tokens of a text."""
        return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)
