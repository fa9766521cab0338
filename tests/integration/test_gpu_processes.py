"""From a process on a GPU to its container, ECS task and model server."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from page_server import PageServer, page_server

from gpu_metrics.adapters.attributed_processes import AttributedProcesses, ServedModel
from gpu_metrics.adapters.configured_host import ConfiguredHost
from gpu_metrics.adapters.ecs_host import EcsHost
from gpu_metrics.adapters.ecs_tasks import EcsContainer, EcsTasks
from gpu_metrics.adapters.proc_tree import ProcTree
from gpu_metrics.domain.processes import GpuProcess, ProcessReading
from gpu_metrics.domain.readings import Host
from servicekit.clock import SystemClock
from servicekit.testing import FakeClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CONTAINER = "3f1e" * 16
TASK = "0123456789abcdef0123456789abcdef"
ARN = f"arn:aws:ecs:eu-central-1:123456789012:task/gpus/{TASK}"
GPUS = {0: "GPU-a", 1: "GPU-b"}
TASKS = {
    "Tasks": [
        {
            "Arn": ARN,
            "Family": "gold-llm",
            "KnownStatus": "RUNNING",
            "Containers": [{"DockerId": CONTAINER, "DockerName": "ecs-x", "Name": "vllm"}],
        }
    ]
}
OWN_TASK = {
    "Cluster": "arn:aws:ecs:eu-central-1:123456789012:cluster/gpus",
    "TaskARN": ARN,
    "Family": "gold-llm",
    "ServiceName": "gold",
    "Containers": [{"DockerId": CONTAINER, "Name": "vllm"}],
}


class FixedProcesses:
    def __init__(self, *process_ids: int) -> None:
        self._process_ids = process_ids

    async def read_processes(self) -> ProcessReading:
        return ProcessReading(
            read_time=NOON,
            processes=tuple(
                GpuProcess(process_id=each, gpu_uuid="GPU-a") for each in self._process_ids
            ),
        )


def put_process(root: Path, process_id: int, cgroup: str, *, environ: str = "") -> None:
    """Write a process as Linux shows it."""
    directory = root / str(process_id)
    (directory / "fd").mkdir(parents=True)
    (directory / "cgroup").write_text(cgroup)
    (directory / "comm").write_text("VLLM::EngineCore\n")
    (directory / "environ").write_text(environ)
    (directory / "stat").write_text(f"{process_id} (VLLM) :x) S 1 0 0")


def in_container(root: Path, process_id: int) -> None:
    environ = "PATH=/bin\0NVIDIA_VISIBLE_DEVICES=GPU-b\0X=1\0"
    put_process(
        root,
        process_id,
        f"0::/ecstasks.slice/ecstasks-{TASK}.slice/docker-{CONTAINER}.scope\n",
        environ=environ,
    )


@asynccontextmanager
async def asking(agent: PageServer, task: PageServer | None = None) -> AsyncIterator[EcsTasks]:
    async with aiohttp.ClientSession() as session:
        yield EcsTasks(
            session,
            clock=FakeClock(),
            agent_url=agent.url,
            task_url=task.url if task is not None else None,
            timeout_seconds=0.5 if agent.hanging else 30,
        )


async def attributed(
    ecs: EcsTasks, root: Path, *process_ids: int, servers: tuple[ServedModel, ...] = ()
) -> tuple[GpuProcess, ...]:
    source = AttributedProcesses(
        FixedProcesses(*process_ids),
        proc=ProcTree(root),
        ecs=ecs,
        clock=SystemClock(),
        gpu_uuids=lambda: GPUS,
        servers=lambda: servers,
        timeout_seconds=30,
    )
    try:
        return (
            await source.attribute(await FixedProcesses(*process_ids).read_processes())
        ).processes
    finally:
        source.close()


async def test_a_process_is_traced_to_its_task_by_the_hosts_ecs_agent(tmp_path: Path) -> None:
    in_container(tmp_path, 77)
    async with page_server(json.dumps(TASKS)) as agent, asking(agent) as ecs:
        (process,) = await attributed(ecs, tmp_path, 77)
    assert process == GpuProcess(
        process_id=77,
        gpu_uuid="GPU-a",
        name="VLLM::EngineCore",
        container_id=CONTAINER,
        ecs_task_arn=ARN,
        ecs_service="gold-llm",
        container_name="vllm",
        assigned_gpu_uuids=("GPU-b",),
    )


async def test_processes_are_as_old_as_the_drivers_list_of_them(tmp_path: Path) -> None:
    in_container(tmp_path, 4711)
    reading = await FixedProcesses(4711).read_processes()
    async with page_server(json.dumps(TASKS)) as agent, asking(agent) as ecs:
        clock = FakeClock()
        source = AttributedProcesses(
            FixedProcesses(), proc=ProcTree(tmp_path), ecs=ecs, clock=clock, gpu_uuids=lambda: GPUS
        )
        assert (await source.attribute(reading)).read_time == reading.read_time != clock.now()
        source.close()


async def test_a_container_that_ecs_does_not_list_is_traced_to_its_task_by_its_path(
    tmp_path: Path,
) -> None:
    put_process(tmp_path, 1, f"4:memory:/ecs/{TASK}/{'9' * 64}\n")
    put_process(tmp_path, 2, f"4:memory:/ecs/{'8' * 32}/{'9' * 64}\n")
    async with page_server(json.dumps(TASKS)) as agent, asking(agent) as ecs:
        known, unknown = await attributed(ecs, tmp_path, 1, 2)
    assert (known.ecs_task_arn, known.container_name, known.unknown_because) == (ARN, "", "")
    assert unknown.unknown_because == f"nobody here knows the ECS task {'8' * 32}"


async def test_a_sidecar_learns_its_service_from_the_metadata_of_its_task(tmp_path: Path) -> None:
    in_container(tmp_path, 77)
    async with (
        page_server("", status=404) as agent,
        page_server(json.dumps(OWN_TASK)) as task,
        asking(agent, task) as ecs,
    ):
        (process,) = await attributed(ecs, tmp_path, 77)
        host = await EcsHost(
            ConfiguredHost(Host(host_id="i-1")), ecs, clock=FakeClock()
        ).read_host()
        assert host.ecs_cluster == ""
        await EcsHost(ConfiguredHost(host), ecs, clock=FakeClock()).run()
        assert ecs.cluster == "gpus"
    assert (process.ecs_service, process.ecs_task_arn) == ("gold", ARN)


async def test_a_process_with_a_name_that_cannot_be_shown_does_not_silence_its_host(
    tmp_path: Path,
) -> None:
    in_container(tmp_path, 77)
    (tmp_path / "77" / "comm").write_bytes(b"\x1b[2Jvllm\xff\0\n")
    async with page_server(json.dumps(TASKS)) as agent, asking(agent) as ecs:
        (process,) = await attributed(ecs, tmp_path, 77)
    assert process.name == "[2Jvllm\N{REPLACEMENT CHARACTER}"


async def test_what_is_not_known_is_said_and_not_guessed(tmp_path: Path) -> None:
    put_process(tmp_path, 1, "0::/system.slice/vllm.service\n")
    put_process(tmp_path, 2, "no control group")
    put_process(tmp_path, 3, f"0::/docker/{'9' * 64}\n")
    async with page_server(json.dumps(TASKS)) as agent, asking(agent) as ecs:
        processes = await attributed(ecs, tmp_path, 1, 2, 3, 4)
    assert [process.unknown_because for process in processes] == [
        "the process runs in no container",
        "the process's control group is not understood",
        "the container is of no ECS task of this host",
        "the process is not visible to the agent, or gone",
    ]
    assert not any(process.ecs_task_arn or process.assigned_gpu_uuids for process in processes)


@pytest.mark.parametrize(
    "page",
    [
        "",
        "[]",
        "{",
        '{"Tasks": 5}',
        '{"Tasks": [5, {"Containers": [null, {"DockerId": 7}]}]}',
        "[" * 100_000,
        '{"Tasks": "' + "x" * 10_000_000 + '"}',
    ],
    ids=["empty", "list", "torn", "number", "holes", "deep", "large"],
)
async def test_an_ecs_agent_that_talks_nonsense_names_no_task(tmp_path: Path, page: str) -> None:
    in_container(tmp_path, 77)
    async with page_server(page) as agent, asking(agent) as ecs:
        (process,) = await attributed(ecs, tmp_path, 77)
    assert process.container_id == CONTAINER
    assert process.unknown_because
    assert process.ecs_task_arn == ""


async def test_without_an_ecs_agent_the_container_is_known_all_the_same(tmp_path: Path) -> None:
    in_container(tmp_path, 77)
    put_process(tmp_path, 78, f"0::/docker/{'9' * 64}\n")
    async with page_server() as agent:
        agent.hanging = True
        async with asking(agent) as ecs:
            (late,) = await attributed(ecs, tmp_path, 77)
    async with asking(agent) as ecs:
        refused, plain = await attributed(ecs, tmp_path, 77, 78)
    assert late == refused
    assert plain.unknown_because == "there is no ECS agent to ask for the task"
    assert refused.container_id == CONTAINER
    assert refused.unknown_because == f"nobody here knows the ECS task {TASK}"


async def test_ecs_is_asked_once_a_minute_and_soon_for_a_container_it_did_not_know() -> None:
    clock = FakeClock()
    async with page_server(json.dumps(TASKS)) as agent, aiohttp.ClientSession() as session:
        ecs = EcsTasks(session, clock=clock, agent_url=agent.url, timeout_seconds=30)
        for seconds, wanted, requests in (
            (0, CONTAINER, 1),
            (10, CONTAINER, 1),
            (50, CONTAINER, 2),
            (1, "unknown", 2),
            (5, "unknown", 3),
            (4, "unknown", 3),
        ):
            await clock.advance(seconds)
            await ecs.refresh({wanted})
            assert agent.requests == requests
        assert ecs.find(CONTAINER) == EcsContainer(ARN, "gold-llm", "vllm")


LISTENER = """\
import socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
child = subprocess.Popen(waiting, stdin=subprocess.PIPE)
print(listener.getsockname()[1], child.pid, flush=True)
sys.stdin.read()
child.stdin.close()
child.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="there is no /proc here")
async def test_the_child_of_a_server_that_listens_is_that_server(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        LISTENER,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with socket.create_server(("127.0.0.1", 0)) as other:
        try:
            async with asyncio.timeout(60):
                port, child = map(int, (await process.stdout.readline()).split())
            served = ServedModel("i-1:8000", port, "qwen")
            not_its = ServedModel("i-1:8001", other.getsockname()[1], "llama")
            async with page_server("", status=404) as agent, asking(agent) as ecs:
                worker, _, mine = await attributed(
                    ecs, Path("/proc"), child, 2**22 + 1, os.getpid(), servers=(served, not_its)
                )
        finally:
            process.stdin.close()
            async with asyncio.timeout(60):
                await process.wait()
    assert (worker.server_id, worker.model) == ("i-1:8000", "qwen")
    assert (mine.server_id, mine.model) == ("i-1:8001", "llama")
