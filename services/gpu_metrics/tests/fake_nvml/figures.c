/* Figures that are read one by one. */
#include <stdio.h>

#include "fake_nvml.h"

int figure_value(const struct answer *answer, enum figure figure, double *value) {
    const struct signal *signal = &answer->gpu->figures[figure];
    if (signal->kind == ABSENT) return NOT_SUPPORTED;
    *value = signal_at(signal, &answer->scenario->times, answer->now);
    return SUCCESS;
}

static int read_figure(enum call call, void *device, enum figure figure, double *value) {
    struct answer answer;
    int code = begin_on(&answer, call, device);
    if (code == SUCCESS) code = figure_value(&answer, figure, value);
    return end(&answer, code);
}

static int read_unsigned(enum call call, void *device, enum figure figure, unsigned int *value) {
    double wide = 0;
    int code = read_figure(call, device, figure, &wide);
    if (code == SUCCESS) *value = (unsigned int)wide;
    return code;
}

static int read_wide(enum call call, void *device, enum figure figure, unsigned long long *value) {
    double wide = 0;
    int code = read_figure(call, device, figure, &wide);
    if (code == SUCCESS) *value = (unsigned long long)wide;
    return code;
}

/* The rates are means over the driver's last period, as the newest sample of the ring is. */
static double last_mean(const struct answer *answer, enum figure figure, int sampling_type) {
    long long period = answer->gpu->rings[ring_index(sampling_type)].period;
    long long start = answer->scenario->times.started;
    long long last = start + (answer->now - start) / period * period;
    return signal_mean(&answer->gpu->figures[figure], &answer->scenario->times, last - period, last);
}

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *utilization) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetUtilizationRates, device);
    if (code == SUCCESS && answer.gpu->figures[UTILIZATION].kind == ABSENT) code = NOT_SUPPORTED;
    if (code == SUCCESS) {
        utilization->gpu = (unsigned int)(last_mean(&answer, UTILIZATION, SAMPLE_UTILIZATION) + 0.5);
        utilization->memory = (unsigned int)(last_mean(&answer, MEMORY_UTILIZATION, SAMPLE_MEMORY_UTILIZATION) + 0.5);
    }
    return end(&answer, code);
}

static int read_coder(enum call call, void *device, enum figure figure, unsigned int *percent, unsigned int *period) {
    *period = 166667;
    return read_unsigned(call, device, figure, percent);
}

int nvmlDeviceGetEncoderUtilization(void *device, unsigned int *percent, unsigned int *period) {
    return read_coder(CALL_nvmlDeviceGetEncoderUtilization, device, ENCODER, percent, period);
}

int nvmlDeviceGetDecoderUtilization(void *device, unsigned int *percent, unsigned int *period) {
    return read_coder(CALL_nvmlDeviceGetDecoderUtilization, device, DECODER, percent, period);
}

static int read_memory(enum call call, void *device, struct memory_v2 *memory) {
    struct answer answer;
    double total, used, reserved;
    int code = begin_on(&answer, call, device);
    if (code == SUCCESS) code = figure_value(&answer, MEMORY_TOTAL, &total);
    if (code == SUCCESS) code = figure_value(&answer, MEMORY_USED, &used);
    if (code == SUCCESS) {
        if (figure_value(&answer, MEMORY_RESERVED, &reserved) != SUCCESS) reserved = 0;
        memory->total = (unsigned long long)total;
        memory->reserved = (unsigned long long)reserved;
        memory->used = (unsigned long long)used;
        memory->free = memory->total - memory->reserved - memory->used;
    }
    return end(&answer, code);
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory_v1 *memory) {
    struct memory_v2 figures;
    int code = read_memory(CALL_nvmlDeviceGetMemoryInfo, device, &figures);
    if (code != SUCCESS) return code;
    /* The first version counts what the driver reserves as used. */
    *memory = (struct memory_v1){figures.total, figures.free, figures.used + figures.reserved};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory_v2 *memory) {
    struct memory_v2 figures = {.version = memory->version};
    if (memory->version != MEMORY_VERSION_2) return ARGUMENT_VERSION_MISMATCH;
    int code = read_memory(CALL_nvmlDeviceGetMemoryInfo_v2, device, &figures);
    if (code == SUCCESS) *memory = figures;
    return code;
}

int nvmlDeviceGetBAR1MemoryInfo(void *device, struct bar1_memory *memory) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetBAR1MemoryInfo, device);
    *memory = (struct bar1_memory){256ull << 20, 254ull << 20, 2ull << 20};
    return end(&answer, code);
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) {
    if (sensor != 0) return INVALID_ARGUMENT;
    return read_unsigned(CALL_nvmlDeviceGetTemperature, device, TEMPERATURE, celsius);
}

int nvmlDeviceGetTemperatureV(void *device, struct temperature_v1 *temperature) {
    unsigned int celsius = 0;
    if (temperature->version != TEMPERATURE_VERSION_1) return ARGUMENT_VERSION_MISMATCH;
    int code = read_unsigned(CALL_nvmlDeviceGetTemperatureV, device, TEMPERATURE, &celsius);
    temperature->temperature = (int)celsius;
    return code;
}

int nvmlDeviceGetFanSpeed(void *device, unsigned int *percent) {
    return read_unsigned(CALL_nvmlDeviceGetFanSpeed, device, FAN, percent);
}

static int read_clock(enum call call, void *device, enum figure figure, enum figure instead, unsigned int *megahertz) {
    struct answer answer;
    double value = 0;
    int code = begin_on(&answer, call, device);
    if (code == SUCCESS) code = begin_part(&answer, FIGURE_NAMES[figure]);
    if (code == SUCCESS) code = figure_value(&answer, figure, &value);
    if (code == NOT_SUPPORTED && answer.gpu) code = figure_value(&answer, instead, &value);
    if (code == SUCCESS) *megahertz = (unsigned int)value;
    return end(&answer, code);
}

int nvmlDeviceGetClockInfo(void *device, int clock, unsigned int *megahertz) {
    static const enum figure FIGURES_OF[] = {GRAPHICS_CLOCK, SM_CLOCK, MEMORY_CLOCK, VIDEO_CLOCK};
    if (clock < CLOCK_GRAPHICS || clock > CLOCK_VIDEO) return INVALID_ARGUMENT;
    /* The graphics clock is the one that streaming multiprocessors run at. */
    enum figure instead = clock == CLOCK_GRAPHICS ? SM_CLOCK : FIGURES_OF[clock];
    return read_clock(CALL_nvmlDeviceGetClockInfo, device, FIGURES_OF[clock], instead, megahertz);
}

int nvmlDeviceGetMaxClockInfo(void *device, int clock, unsigned int *megahertz) {
    if (clock < CLOCK_GRAPHICS || clock > CLOCK_VIDEO) return INVALID_ARGUMENT;
    enum figure figure = clock == CLOCK_MEMORY ? MAX_MEMORY_CLOCK : MAX_SM_CLOCK;
    return read_clock(CALL_nvmlDeviceGetMaxClockInfo, device, figure, figure, megahertz);
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
    return read_wide(CALL_nvmlDeviceGetCurrentClocksEventReasons, device, CLOCK_EVENT_REASONS, reasons);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    return read_wide(CALL_nvmlDeviceGetCurrentClocksThrottleReasons, device, CLOCK_EVENT_REASONS, reasons);
}

int nvmlDeviceGetPerformanceState(void *device, unsigned int *state) {
    return read_unsigned(CALL_nvmlDeviceGetPerformanceState, device, PERFORMANCE_STATE, state);
}

int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) {
    return read_unsigned(CALL_nvmlDeviceGetPowerUsage, device, POWER, milliwatts);
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned int *milliwatts) {
    return read_unsigned(CALL_nvmlDeviceGetEnforcedPowerLimit, device, POWER_LIMIT, milliwatts);
}

int nvmlDeviceGetPowerManagementLimit(void *device, unsigned int *milliwatts) {
    return read_unsigned(CALL_nvmlDeviceGetPowerManagementLimit, device, POWER_LIMIT, milliwatts);
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    return read_wide(CALL_nvmlDeviceGetTotalEnergyConsumption, device, ENERGY, millijoules);
}

int nvmlDeviceGetTotalEccErrors(void *device, int error_type, int counter_type, unsigned long long *errors) {
    (void)counter_type;
    return read_wide(CALL_nvmlDeviceGetTotalEccErrors, device, error_type == 0 ? ECC_CORRECTED : ECC_UNCORRECTED, errors);
}

int nvmlDeviceGetPcieThroughput(void *device, int direction, unsigned int *kilobytes) {
    return read_unsigned(CALL_nvmlDeviceGetPcieThroughput, device, direction == 0 ? PCIE_TX : PCIE_RX, kilobytes);
}

int nvmlDeviceGetPcieReplayCounter(void *device, unsigned int *replays) {
    return read_unsigned(CALL_nvmlDeviceGetPcieReplayCounter, device, PCIE_REPLAYS, replays);
}
