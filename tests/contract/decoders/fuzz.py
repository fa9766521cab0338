"""Fuzzes one decoder, guided by coverage: python fuzz.py TARGET CORPUS [libFuzzer options].

    python tests/contract/decoders/fuzz.py events /tmp/events -max_total_time=60

An input that breaks the decoder is kept in the corpus folder and named on the last line; the same
command with that file's path as its only option tries it again.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["ai_router", "autoscaler", "gpu_metrics", "knowledge_base", "messaging", "servicekit"]
):
    from decoder_targets import TARGETS


def main() -> None:
    """Runs until the time is over or an input breaks the decoder."""
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz.py TARGET CORPUS [options]; targets: {', '.join(TARGETS)}")
    target, corpus = TARGETS[sys.argv[1]], Path(sys.argv[2])
    if corpus.is_dir():
        for number, seed in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        words = corpus.with_suffix(".words")
        escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
        words.write_text("".join(f'"{word}"\n' for word in escaped), encoding="ascii")
        options = [f"-artifact_prefix={corpus}/broken-", str(corpus)]
        if target.words:
            options.append(f"-dict={words}")
    else:
        options = [str(corpus)]
    atheris.Setup([sys.argv[0], *sys.argv[3:], *options], target.decode)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
