import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_metrics.domain.assigned_gpus import assigned_gpus
from gpu_metrics.domain.cgroup_path import parse_control_groups

CONTAINER = "3f1e" * 16
INNER = "ab09" * 16
TASK = "0123456789abcdef0123456789abcdef"
LONG_TASK = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize(
    ("text", "container", "task"),
    [
        # Version 2.
        (f"0::/system.slice/docker-{CONTAINER}.scope\n", CONTAINER, ""),
        (f"0::/ecstasks.slice/ecstasks-{TASK}.slice/docker-{CONTAINER}.scope\n", CONTAINER, TASK),
        (f"0::/docker/{CONTAINER}\n", CONTAINER, ""),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{CONTAINER}.scope", CONTAINER, ""),
        (f"0::/kubepods/besteffort/pod2f1c/{CONTAINER}", CONTAINER, ""),
        (f"0::/system.slice/containerd.service/k8s.io:cri-containerd:{CONTAINER}", CONTAINER, ""),
        (f"0::/machine.slice/libpod-{CONTAINER}.scope/container", CONTAINER, ""),
        (f"0::/kubepods.slice/crio-{CONTAINER}.scope", CONTAINER, ""),
        (f"0::/../docker-{CONTAINER}.scope", CONTAINER, ""),
        # A container in a container: the innermost.
        (f"0::/docker/{CONTAINER}/docker/{INNER}", INNER, ""),
        # Version 1, with ECS's own group.
        (
            (
                f"11:perf_event:/ecs/{TASK}/{CONTAINER}\n5:memory:/ecs/{TASK}/{CONTAINER}\n"
                "1:name=systemd:/\n"
            ),
            CONTAINER,
            TASK,
        ),
        (f"4:devices:/ecs/{LONG_TASK}/{CONTAINER}", CONTAINER, LONG_TASK),
        (f"4:devices:/ecs/my-cluster/{TASK}/{CONTAINER}", CONTAINER, TASK),
        # Fargate's containers are named after their task.
        (f"4:devices:/ecs/{TASK}/{TASK}-3213514512", f"{TASK}-3213514512", TASK),
        # Both versions at once: version 1 tells the container.
        (f"5:memory:/docker/{CONTAINER}\n0::/system.slice/containerd.service", CONTAINER, ""),
        # In no container.
        ("0::/system.slice/vllm.service\n", "", ""),
        ("0::/user.slice/user-1000.slice/session-4.scope\n", "", ""),
        ("0::/\n", "", ""),
        # Hexadecimal, but no container's id.
        (f"0::/docker/{CONTAINER[:-1]}\n", "", ""),
        (f"0::/docker/{CONTAINER}0\n", "", ""),
        (f"0::/docker/{CONTAINER.upper()}\n", "", ""),
    ],
)
def test_a_path_names_its_container_and_task(text: str, container: str, task: str) -> None:
    group = parse_control_groups(text)
    assert group is not None
    assert (group.container_id, group.ecs_task_id) == (container, task)


@pytest.mark.parametrize("text", ["", "\n", "garbage", "0:", "x::/docker/a", "0::relative"])
def test_what_is_no_control_group_is_none(text: str) -> None:
    assert parse_control_groups(text) is None


hexadecimal = st.text("0123456789abcdef", min_size=64, max_size=64)
slices = st.lists(st.from_regex(r"[a-z]{1,9}(-[a-z0-9]{1,6})?\.slice", fullmatch=True), max_size=4)


@given(
    container=hexadecimal,
    parents=slices,
    runtime=st.sampled_from(["docker-", "cri-containerd-", "crio-", "libpod-"]),
    version=st.sampled_from(["0::", "7:memory:", "9:cpu,cpuacct:"]),
    others=st.lists(st.sampled_from(["1:name=systemd:/", "3:freezer:/", "12:rdma:/"])),
)
def test_a_container_is_found_below_any_slices(
    container: str, parents: list[str], runtime: str, version: str, others: list[str]
) -> None:
    path = "/" + "/".join([*parents, f"{runtime}{container}.scope"])
    group = parse_control_groups("\n".join([*others, version + path]))
    assert group is not None
    assert group.container_id == container


@given(st.text(alphabet="/:-.0123456789abcdefecsk\n", max_size=300))
def test_no_text_is_too_strange(text: str) -> None:
    group = parse_control_groups(text)
    assert group is None or group.path.startswith("/")


UUIDS = {0: "GPU-aaaa-1", 1: "GPU-aaab-2", 2: "GPU-cccc-3"}


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [
        (None, ()),
        ("", ()),
        ("none", ()),
        ("void", ()),
        ("GPU-cccc-3,GPU-aaaa-1", ("GPU-cccc-3", "GPU-aaaa-1")),
        ("1, 0,1", ("GPU-aaab-2", "GPU-aaaa-1")),
        ("GPU-ccc", ("GPU-cccc-3",)),
        # Cut too short to tell which, or of another host.
        ("GPU-aaa", ()),
        ("GPU-9999", ()),
        ("7", ()),
        ("all", ("GPU-aaaa-1", "GPU-aaab-2", "GPU-cccc-3")),
    ],
)
def test_a_container_was_given_what_its_variable_names(
    variable: str | None, gpus: tuple[str, ...]
) -> None:
    assert assigned_gpus(variable, UUIDS) == gpus
