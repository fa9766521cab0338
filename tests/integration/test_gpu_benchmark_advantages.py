"""What the benchmark beside other programs claims is missed where it is not so."""

from dataclasses import replace

import pytest
from gpu_host import CONTAINER, MODEL, SERVICE, TASK_ARN
from report_recorder import Receiver, Recorder
from rival_advantages import XIDS, Outage, compare_advantages
from rival_page import Polls

from gaming.gpu_metrics.v1 import events_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc, processes_pb2
from servicekit.channels import open_channel

PID, BEGAN, ENDED = 4321, 1000.0, 1003.0
OUTAGE = Outage(BEGAN, ENDED, {xid: BEGAN + turn for turn, xid in enumerate(XIDS)})
PROCESS_LINE = f'process_info{{pid="{PID}",username="root",command="vllm"}} 1.0'


def event_of(sequence: int, xid: int) -> events_pb2.GpuEvent:
    event = events_pb2.GpuEvent(
        sequence=sequence,
        kind=events_pb2.GPU_EVENT_KIND_XID,
        gpu_uuid="GPU-0",
        xid=xid,
        severity=events_pb2.SEVERITY_WARNING,
        description="a fault",
    )
    event.time.FromMicroseconds(round(OUTAGE.xid_times[xid] * 1e6))
    return event


def all_of_it() -> Recorder:
    process = processes_pb2.GpuProcess(
        process_id=PID,
        gpu_uuid="GPU-0",
        container_id=CONTAINER,
        ecs_task_arn=TASK_ARN,
        ecs_service=SERVICE,
        container_name="vllm",
        model=MODEL,
    )
    return Recorder(
        events={number: event_of(number, xid) for number, xid in enumerate(XIDS, start=1)},
        processes=processes_pb2.ProcessReading(processes=[process]),
        utilization=[(0, BEGAN - 1 + number / 6, 0.0) for number in range(30)],
    )


def missed(kept: Recorder, page: str = PROCESS_LINE) -> list[str]:
    limits = compare_advantages(
        kept, Polls(page=page), OUTAGE, gpus=1, process_id=PID, with_rival=True
    )
    return [limit.told.split(":")[0] for limit in limits if not limit.kept]


def test_what_is_so_is_kept() -> None:
    assert missed(all_of_it()) == []


def test_an_xid_that_does_not_arrive_is_missed() -> None:
    kept = all_of_it()
    del kept.events[2]
    assert missed(kept) == ["XIDs that arrived, each once and in order"]


def test_a_process_without_its_task_is_missed() -> None:
    kept = all_of_it()
    assert kept.processes is not None
    kept.processes.processes[0].ecs_task_arn = ""
    assert len(missed(kept)) == 1
    assert len(missed(replace(kept, processes=None))) == 1


def test_samples_of_the_outage_that_do_not_arrive_are_missed() -> None:
    kept = all_of_it()
    kept.utilization = [each for each in kept.utilization if not BEGAN < each[1] < BEGAN + 1]
    assert missed(kept) == [
        "utilisation samples of the time without a receiver, of those made",
        "longest time without a sample in it, seconds",
    ]


@pytest.mark.parametrize(
    "line",
    [
        f"{PROCESS_LINE}\ngpu_xid_errors 3",
        f'process_info{{pid="{PID}",task="{TASK_ARN}"}} 1.0',
        f'process_info{{pid="{PID}",service="gold"}} 1.0',
        "",
    ],
    ids=["xid", "task", "service", "no process"],
)
def test_a_rival_that_tells_more_than_is_said_of_it_is_missed(line: str) -> None:
    assert len(missed(all_of_it(), line)) == 1


async def test_a_receiver_keeps_its_port_and_what_it_has_while_it_is_stopped() -> None:
    receiver = Receiver()
    addresses, answers = set(), []
    for _ in range(2):
        await receiver.start()
        addresses.add(receiver.address)
        async with open_channel(receiver.address) as channel:
            call = gpu_metrics_pb2_grpc.GpuReportServiceStub(channel).StreamReports(timeout=30)
            # The second time nothing new is sent: where the receiver stands is asked.
            events = [] if receiver.kept.events else [event_of(1, XIDS[0]), event_of(2, XIDS[1])]
            await call.write(gpu_metrics_pb2.StreamReportsRequest(events=events, events_only=True))
            answer = await call.read()
            assert isinstance(answer, gpu_metrics_pb2.StreamReportsResponse)
            answers.append(answer.acknowledged_event_sequence)
            call.cancel()
        await receiver.stop()
    assert len(addresses) == 1
    assert answers == [2, 2]
