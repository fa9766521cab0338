/* Calls that give many values at once: sample rings, field values, processes. */
#include <stdio.h>

#include "fake_nvml.h"

static const enum figure RING_FIGURES[RINGS] = {POWER, UTILIZATION, MEMORY_UTILIZATION, SM_CLOCK};

/*
 * Fills in the samples newer than `last_seen`, oldest first, and returns how many there are. A sample
 * of a share of time is the mean over its period, one of power or a clock the value at its end.
 */
static unsigned int read_ring(const struct answer *answer, int kind, unsigned long long last_seen,
                              struct sample *samples, unsigned int room) {
    const struct ring *ring = &answer->gpu->rings[kind];
    const struct signal *signal = &answer->gpu->figures[RING_FIGURES[kind]];
    const struct times *times = &answer->scenario->times;
    int is_share = RING_FIGURES[kind] == UTILIZATION || RING_FIGURES[kind] == MEMORY_UTILIZATION;
    long long newest = (answer->now - times->started) / ring->period;
    long long oldest = newest - (long long)ring->capacity + 1;
    unsigned int count = 0;
    for (long long number = oldest > 1 ? oldest : 1; number <= newest && count < room; number++) {
        long long moment = times->started + number * ring->period;
        if (moment <= (long long)last_seen) continue;
        double value = is_share ? signal_mean(signal, times, moment - ring->period, moment)
                                : signal_at(signal, times, moment);
        if (ring->state == RING_EMPTY_WHEN_IDLE && value < 0.5) continue;
        samples[count].timestamp_microseconds = (unsigned long long)moment;
        samples[count].value.as_unsigned_long_long = 0;
        samples[count].value.as_unsigned = (unsigned int)(value + 0.5);
        count++;
    }
    return count;
}

int nvmlDeviceGetSamples(void *device, int type, unsigned long long last_seen, int *value_type, unsigned int *count,
                         struct sample *samples) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetSamples, device), kind = ring_index(type);
    if (code != SUCCESS) return end(&answer, code);
    if (kind < 0 || answer.gpu->rings[kind].state == RING_UNSUPPORTED ||
        answer.gpu->figures[RING_FIGURES[kind]].kind == ABSENT) {
        return end(&answer, NOT_SUPPORTED);
    }
    *value_type = TYPE_UNSIGNED_INT;
    if (!samples) {
        *count = answer.gpu->rings[kind].capacity;
        return end(&answer, SUCCESS);
    }
    if (answer.gpu->rings[kind].state == RING_EMPTY) return end(&answer, NOT_FOUND);
    *count = read_ring(&answer, kind, last_seen, samples, *count);
    return end(&answer, *count == 0 ? NOT_FOUND : SUCCESS);
}

static const struct {
    unsigned int id;
    enum figure figure;
    enum value_type type;
} FIELDS[] = {
    {FIELD_ECC_CORRECTED, ECC_CORRECTED, TYPE_UNSIGNED_LONG_LONG},
    {FIELD_ECC_UNCORRECTED, ECC_UNCORRECTED, TYPE_UNSIGNED_LONG_LONG},
    {FIELD_MEMORY_TEMPERATURE, MEMORY_TEMPERATURE, TYPE_UNSIGNED_INT},
    {FIELD_ENERGY, ENERGY, TYPE_UNSIGNED_LONG_LONG},
    {FIELD_PCIE_REPLAYS, PCIE_REPLAYS, TYPE_UNSIGNED_INT},
    {FIELD_POWER_AVERAGE, POWER, TYPE_UNSIGNED_INT},
    {FIELD_POWER_INSTANT, POWER, TYPE_UNSIGNED_INT},
    {FIELD_POWER_CURRENT_LIMIT, POWER_LIMIT, TYPE_UNSIGNED_INT},
    {FIELD_PCIE_TRANSMIT_BYTES, PCIE_TX_BYTES, TYPE_UNSIGNED_LONG_LONG},
    {FIELD_PCIE_RECEIVE_BYTES, PCIE_RX_BYTES, TYPE_UNSIGNED_LONG_LONG},
};

static int read_field(struct answer *answer, struct field_value *value) {
    char name[24];
    double number;
    snprintf(name, sizeof name, "field_%u", value->field_id);
    int code = begin_part(answer, name);
    if (code != SUCCESS) return code;
    value->timestamp_microseconds = answer->now;
    value->latency_microseconds = 0;
    /* What the scenario says of a field by its number comes before the figure of the same meaning. */
    for (unsigned int i = answer->gpu->field_count; i-- > 0;) {
        const struct field *field = &answer->gpu->fields[i];
        if (field->id != value->field_id) continue;
        value->value_type = TYPE_UNSIGNED_LONG_LONG;
        if (field->status == SUCCESS) {
            value->value.as_unsigned_long_long =
                (unsigned long long)signal_at(&field->signal, &answer->scenario->times, answer->now);
        }
        return field->status;
    }
    for (unsigned int i = 0; i < sizeof FIELDS / sizeof FIELDS[0]; i++) {
        if (FIELDS[i].id != value->field_id) continue;
        code = begin_part(answer, FIGURE_NAMES[FIELDS[i].figure]);
        if (code == SUCCESS) code = figure_value(answer, FIELDS[i].figure, &number);
        if (code != SUCCESS) return code;
        value->value_type = FIELDS[i].type;
        if (FIELDS[i].type == TYPE_UNSIGNED_INT) value->value.as_unsigned = (unsigned int)number;
        else value->value.as_unsigned_long_long = (unsigned long long)number;
        return SUCCESS;
    }
    return NOT_SUPPORTED;
}

int nvmlDeviceGetFieldValues(void *device, int count, struct field_value *values) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetFieldValues, device);
    for (int i = 0; code == SUCCESS && i < count; i++) {
        values[i].status = read_field(&answer, &values[i]);
        if (!answer.gpu) code = INVALID_ARGUMENT;
    }
    return end(&answer, code);
}

/* Both versions of the structure have the same size up to the instances, so `size` tells them apart. */
static int read_processes(enum call call, void *device, int graphics, unsigned int *count, void *processes, int version) {
    struct answer answer;
    unsigned int found = 0, room = *count;
    int code = begin_on(&answer, call, device);
    for (unsigned int i = 0; code == SUCCESS && i < answer.gpu->process_count; i++) {
        const struct process *process = &answer.gpu->processes[i];
        if (process->graphics != graphics) continue;
        if (found < room && processes) {
            if (version == 1) {
                ((struct process_v1 *)processes)[found] = (struct process_v1){process->id, process->memory};
            } else {
                ((struct process_v2 *)processes)[found] =
                    (struct process_v2){process->id, process->memory, NO_INSTANCE, NO_INSTANCE};
            }
        }
        found++;
    }
    if (code == SUCCESS) {
        *count = found;
        if (found > room) code = INSUFFICIENT_SIZE;
    }
    return end(&answer, code);
}

#define PROCESS_LIST(function, graphics, version)                                               \
    int function(void *device, unsigned int *count, void *processes) {                          \
        return read_processes(CALL_##function, device, graphics, count, processes, version);    \
    }

PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses, 0, 1)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v2, 0, 2)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, 0, 2)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses, 1, 1)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, 1, 2)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, 1, 2)

int nvmlDeviceGetProcessUtilization(void *device, struct process_utilization *utilization, unsigned int *count,
                                    unsigned long long last_seen) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetProcessUtilization, device);
    (void)utilization;
    (void)last_seen;
    if (code == SUCCESS) {
        *count = 0;
        code = NOT_FOUND;
    }
    return end(&answer, code);
}
