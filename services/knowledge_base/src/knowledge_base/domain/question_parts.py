"""What a question asks for, one thing after another."""

import re

__all__ = ["question_parts"]

_ASKING = r"(?:who|whom|whose|what|how|where|when|why|which)\b"
# Without a comma before it, "and is" goes on with what was asked: "what grows there and is eaten?"
_ORDER = (
    r"(?:is|are|was|were|do|does|did|can|could|will|would|should|may|must|has|have|had)\s+"
    r"(?:it|they|he|she|one|you|there|that|this|the|a|an)\b"
)
_QUESTION = re.compile(rf"\s*(?:{_ASKING}|{_ORDER})|[^?]*\?", re.IGNORECASE)
_FURTHER = re.compile(
    rf"(?:(?:,?\s+and|;|\?)\s+(?={_ASKING})|(?:,\s+and|;|\?)\s+(?={_ORDER}))", re.IGNORECASE
)
# "On which days, what pass is needed and who keeps the gate?"; alone it mostly begins an aside.
_LISTED = re.compile(rf",\s+(?={_ASKING})", re.IGNORECASE)
# Fewer words ask for nothing by themselves: "when and where did they meet?"
_LEAST_WORDS = 3


def question_parts(text: str) -> tuple[tuple[int, int], ...]:
    """Returns where each question within a question stands, as offsets of characters.

    "Who kept the ledger, and where is it now?" are two; what is no question, or asks for one thing,
    is one part. Parts come in their order, what joins them is in none.
    """
    joints = [match.span() for match in _FURTHER.finditer(text)] if _QUESTION.match(text) else []
    if joints:
        joints += [match.span() for match in _LISTED.finditer(text[: joints[-1][0]])]
    parts: list[tuple[int, int]] = []
    start = 0
    for end, following in [*sorted(joints), (len(text), len(text))]:
        if len(text[start:end].split()) >= _LEAST_WORDS:
            parts.append((start, end))
        elif parts:
            parts[-1] = (parts[-1][0], end)
        else:
            continue  # too little to begin with: it goes on into the next
        start = following
    return tuple(parts) or ((0, len(text)),)
