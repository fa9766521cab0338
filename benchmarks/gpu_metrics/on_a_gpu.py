"""What the agent takes of a CUDA load: work a second without it and with it, in turn.

    .venv/bin/python benchmarks/gpu_metrics/on_a_gpu.py [--python PYTHON] [--url PAGE] [--rounds 5]

Needs an NVIDIA GPU with its driver, and a load: matrix products in torch, of the Python that
`--python` names; or a vLLM server that somebody keeps busy, whose metrics page `--url` names
(generated tokens are counted); or with `--load` any command that prints, line by line, how much it
has done since its start. Without them it says what is missing and ends with 2.

It was not run on a GPU yet. What was tried is its course, with the stand-in driver and a load that
uses no GPU, so it claims no figure and sets no limit.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
from contextlib import AsyncExitStack
from statistics import median

from cuda_load import TORCH_LOAD, Load, LoadEnded, run, tokens_of
from report_recorder import recorder

from gpu_metrics.adapters.nvml_discovery import NvmlDriver
from gpu_metrics.adapters.nvml_library import NvmlFailed

EXIT_NOT_HERE = 2


async def measure(options: argparse.Namespace, folder: str) -> None:
    """Print the work of each round without the agent and with it."""
    without, beside = [], []
    command = shlex.split(options.load) if options.load else [options.python, "-c", TORCH_LOAD]
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        receiver = await stack.enter_async_context(recorder())
        if options.url:
            told = tokens_of(options.url)
        else:
            told = await stack.enter_async_context(run(command))
        load = Load()
        following = group.create_task(load.follow(told))
        await load.rate(options.settle)
        print(f"{'work a second':<16}{'without':>14}{'with agent':>14}")
        for turn in range(1, options.rounds + 1):
            without.append(await load.rate(options.seconds))
            async with run(
                [sys.executable, "-m", "gpu_metrics", "agent"],
                GPU_METRICS_COLLECTORS=receiver.address,
                GPU_METRICS_IMDS_ENABLED="false",
                GPU_METRICS_STATE_DIRECTORY=folder,
                GAMEKEEPER_LOG_LEVEL="error",
            ):
                await load.rate(options.settle)
                beside.append(await load.rate(options.seconds))
            print(f"round {turn:<10}{without[-1]:>14,.1f}{beside[-1]:>14,.1f}", flush=True)
        following.cancel()
    spread = (max(without) - min(without)) / median(without)
    print(f"the agent takes {1 - median(beside) / median(without):.2%} of it, by the medians;")
    print(
        f"rounds without it differ by up to {spread:.2%}; it sent {receiver.kept.samples} samples"
    )


def main() -> int:
    """Measure, or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="python3", help="a Python that has torch with CUDA")
    parser.add_argument("--url", help="metrics page of a vLLM server that is kept busy")
    parser.add_argument("--load", help="a command that prints what it has done, line by line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each half of a round")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds before each, uncounted")
    options = parser.parse_args()
    needs = "an NVIDIA GPU with its driver is needed, and torch with CUDA, --url or --load"
    status, missing = 0, ""
    try:
        gpus = NvmlDriver().look_up({}, attach_anew=False).gpus
        print(", ".join(gpu.product_name for gpu in gpus), flush=True)
        with tempfile.TemporaryDirectory(prefix="gpu_load_") as folder:
            asyncio.run(measure(options, folder))
    except* NvmlFailed as failed:
        status, missing = EXIT_NOT_HERE, str(failed.exceptions[0])
    except* LoadEnded:
        status, missing = EXIT_NOT_HERE, "the load ended by itself"
    if missing:
        print(f"{needs}: {missing}")
    return status


if __name__ == "__main__":
    sys.exit(main())
