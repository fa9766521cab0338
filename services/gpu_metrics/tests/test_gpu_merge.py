from gpu_metrics.domain.gpu_merge import merged_gpus
from gpu_metrics.domain.readings import GpuReading, MissingReason

UNSUPPORTED, LOST = MissingReason.UNSUPPORTED, MissingReason.LOST


def test_the_first_source_that_has_a_figure_tells_it() -> None:
    nvml = GpuReading(
        gpu_uuid="G", index=0, power_milliwatts=1, temperature_celsius=UNSUPPORTED, driver_epoch=7
    )
    dcgm = GpuReading(
        gpu_uuid="G", index=0, power_milliwatts=2, temperature_celsius=50, product_name="NVIDIA L4"
    )
    (gpu,) = merged_gpus([[nvml], [dcgm]])
    assert (gpu.power_milliwatts, gpu.temperature_celsius) == (1, 50)
    assert (gpu.driver_epoch, gpu.product_name) == (7, "NVIDIA L4")


def test_a_reason_gives_way_to_a_value_alone() -> None:
    first = GpuReading(gpu_uuid="G", index=0, power_milliwatts=UNSUPPORTED)
    second = GpuReading(gpu_uuid="G", index=0, power_milliwatts=MissingReason.TIMEOUT)
    (gpu,) = merged_gpus([[first], [second]])
    assert gpu.power_milliwatts is UNSUPPORTED
    assert gpu.temperature_celsius is MissingReason.NOT_TOLD


def test_a_gpu_that_is_lost_gets_no_figures_from_a_source_that_has_not_noticed() -> None:
    lost = GpuReading(gpu_uuid="G", index=0, utilization_permille=LOST, power_milliwatts=LOST)
    page = GpuReading(gpu_uuid="G", index=0, utilization_permille=900, power_milliwatts=900)
    assert merged_gpus([[lost], [page]]) == (lost,)


def test_counters_of_another_run_of_the_driver_are_not_taken_over() -> None:
    now = GpuReading(gpu_uuid="G", index=0, driver_epoch=2, energy_millijoules=UNSUPPORTED)
    before = GpuReading(gpu_uuid="G", index=0, driver_epoch=1, energy_millijoules=5)
    assert merged_gpus([[now], [before]]) == (now,)


def test_gpus_that_one_source_knows_are_there() -> None:
    first, second = GpuReading(gpu_uuid="A", index=0), GpuReading(gpu_uuid="B", index=1)
    assert merged_gpus([[first], [second], []]) == (first, second)
