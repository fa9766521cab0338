"""A host's ECS task as an agent finds it: its process, its control group, who knows the task.

One process plays the model server, the ECS agent and the task's metadata, which a real host has
apart. Its `/proc` entry is the real one but for its control group, environment and parent, which
are those of a container; the kernel would need root for that.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONTAINER", "MODEL", "SERVICE", "TASK_ARN", "EcsTaskOnHost", "ecs_task"]

CONTAINER = "3f1e" * 16
_TASK = "0123456789abcdef0123456789abcdef"
TASK_ARN = f"arn:aws:ecs:eu-central-1:123456789012:task/gpus/{_TASK}"
SERVICE, MODEL = "gold", "studio/gold-3b"
_CONTAINERS = [{"DockerId": CONTAINER, "Name": "vllm"}]
_PAGES = {
    "/v1/tasks": {
        "Tasks": [{"Arn": TASK_ARN, "Family": "gold-llm", "Containers": _CONTAINERS}],
    },
    "/v1/metadata": {"Cluster": "gpus"},
    "/task": {
        "Cluster": "gpus",
        "TaskARN": TASK_ARN,
        "Family": "gold-llm",
        "ServiceName": SERVICE,
        "Containers": _CONTAINERS,
    },
}
_VLLM_PAGE = f'vllm:num_requests_running{{engine="0",model_name="{MODEL}"}} 2\n'
_SERVER = """\
import http.server, json, sys
pages, vllm = json.loads(sys.stdin.readline())
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = pages.get(self.path)
        body = (vllm if page is None else json.dumps(page)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@dataclass(frozen=True, slots=True)
class EcsTaskOnHost:
    """The process of a task, and what an agent is told to find it."""

    process_id: int
    environ: Mapping[str, str]


@asynccontextmanager
async def ecs_task(folder: Path) -> AsyncIterator[EcsTaskOnHost]:
    """Run the task's process until the context ends; `folder` becomes the host's /proc."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _SERVER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the model server has no pipes")
        # Not in its arguments, which are on the rival's page.
        process.stdin.write(json.dumps([_PAGES, _VLLM_PAGE]).encode() + b"\n")
        async with asyncio.timeout(30):
            url = f"http://127.0.0.1:{int(await process.stdout.readline())}"
        await asyncio.to_thread(_write_proc, folder / str(process.pid), process.pid)
        yield EcsTaskOnHost(
            process.pid,
            {
                "GPU_METRICS_PROC_DIRECTORY": str(folder),
                "GPU_METRICS_ECS_AGENT_URL": url,
                "ECS_CONTAINER_METADATA_URI_V4": url,
                "GPU_METRICS_MODEL_SERVERS": f"gold={url}",
            },
        )
    finally:
        process.kill()
        await process.wait()


def _write_proc(entry: Path, process_id: int) -> None:
    entry.mkdir(parents=True)
    (entry / "cgroup").write_text(
        f"0::/ecstasks.slice/ecstasks-{_TASK}.slice/docker-{CONTAINER}.scope\n"
    )
    (entry / "environ").write_text("NVIDIA_VISIBLE_DEVICES=all\0")
    # Started by nobody whom this /proc lacks.
    (entry / "stat").write_text(f"{process_id} (vllm) S 1 0 0")
    for name in ("comm", "fd", "net"):
        (entry / name).symlink_to(f"/proc/{process_id}/{name}")
