/*
 * A stand-in for the NVIDIA management library (libnvidia-ml.so.1), for tests on machines without a
 * GPU. It offers the functions the agent calls, with the real library's names, argument order and
 * structure layouts, and answers from a scenario file that it reads again at every call, so a test
 * can change what the driver does while an agent runs.
 *
 * The file is named by FAKE_NVML_SCENARIO and has one statement per line:
 *
 *   driver init_error CODE        nvmlInit fails with this NVML error number
 *   driver hang init              nvmlInit does not return
 *   gpu INDEX FIGURE VALUE        uuid, name (rest of the line), utilization, memory_total,
 *                                 memory_used, memory_reserved, power, energy, temperature, sm_clock
 *   gpu INDEX fail CALL CODE      CALL fails; calls are named like figures, and handle, memory_v2
 *   gpu INDEX hang CALL           CALL does not return while the scenario says so
 *   gpu INDEX lost                every call on this GPU says that it fell off the bus
 *
 * There are as many GPUs as the highest index named, plus one. A figure that is not given is not
 * supported. A hanging call looks at the scenario every 10 ms and gives up after a minute.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

enum figure { UTILIZATION, MEMORY_TOTAL, MEMORY_USED, MEMORY_RESERVED, POWER, ENERGY, TEMPERATURE, SM_CLOCK, FIGURES };

static const char *const FIGURE_NAMES[FIGURES] = {
    "utilization", "memory_total", "memory_used", "memory_reserved", "power", "energy", "temperature", "sm_clock"};

#define MAXIMUM_GPUS 16
#define MAXIMUM_CALLS 16
#define MAXIMUM_TEXT 96

struct outcome {
    char call[24];
    int code; /* -1: hang */
};

struct gpu {
    char uuid[MAXIMUM_TEXT];
    char name[MAXIMUM_TEXT];
    int given[FIGURES];
    unsigned long long figures[FIGURES];
    struct outcome outcomes[MAXIMUM_CALLS];
    int outcome_count;
    int lost;
};

struct scenario {
    int init_error;
    int init_hangs;
    unsigned int gpu_count;
    struct gpu gpus[MAXIMUM_GPUS];
};

typedef struct {
    unsigned int index;
} *device_t;

/* A handle is the address of one of these; the real library's handles are opaque pointers too. */
static struct {
    unsigned int index;
} handles[MAXIMUM_GPUS];

static void add_outcome(struct gpu *gpu, const char *call, int code) {
    if (gpu->outcome_count < MAXIMUM_CALLS) {
        struct outcome *outcome = &gpu->outcomes[gpu->outcome_count++];
        snprintf(outcome->call, sizeof outcome->call, "%s", call);
        outcome->code = code;
    }
}

static void read_gpu_statement(struct gpu *gpu, const char *statement) {
    char word[24], call[24];
    int code = 0, offset = 0;
    if (sscanf(statement, "%23s %n", word, &offset) < 1) return;
    const char *rest = statement + offset;
    if (strcmp(word, "lost") == 0) {
        gpu->lost = 1;
    } else if (strcmp(word, "uuid") == 0) {
        snprintf(gpu->uuid, sizeof gpu->uuid, "%s", rest);
    } else if (strcmp(word, "name") == 0) {
        snprintf(gpu->name, sizeof gpu->name, "%s", rest);
    } else if (strcmp(word, "fail") == 0) {
        if (sscanf(rest, "%23s %d", call, &code) == 2) add_outcome(gpu, call, code);
    } else if (strcmp(word, "hang") == 0) {
        if (sscanf(rest, "%23s", call) == 1) add_outcome(gpu, call, -1);
    } else {
        for (int figure = 0; figure < FIGURES; figure++) {
            if (strcmp(word, FIGURE_NAMES[figure]) == 0) {
                gpu->given[figure] = sscanf(rest, "%llu", &gpu->figures[figure]) == 1;
            }
        }
    }
}

static void load(struct scenario *scenario) {
    memset(scenario, 0, sizeof *scenario);
    const char *path = getenv("FAKE_NVML_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) {
        scenario->init_error = UNKNOWN;
        return;
    }
    char line[256];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\r\n")] = '\0';
        unsigned int index;
        int offset = 0;
        if (sscanf(line, "gpu %u %n", &index, &offset) == 1 && index < MAXIMUM_GPUS) {
            if (index >= scenario->gpu_count) scenario->gpu_count = index + 1;
            read_gpu_statement(&scenario->gpus[index], line + offset);
        } else if (strcmp(line, "driver hang init") == 0) {
            scenario->init_hangs = 1;
        } else {
            sscanf(line, "driver init_error %d", &scenario->init_error);
        }
    }
    fclose(file);
}

static void wait_a_little(void) {
    struct timespec pause = {0, 10 * 1000 * 1000};
    nanosleep(&pause, NULL);
}

/* What the scenario has in store for a call on a GPU; returns once a hang is over. */
static int begin(struct scenario *scenario, void *device, const char *call, struct gpu **gpu) {
    unsigned int index = ((device_t)device)->index;
    for (int waited = 0; waited < 6000; waited++) {
        load(scenario);
        if (index >= scenario->gpu_count) return INVALID_ARGUMENT;
        *gpu = &scenario->gpus[index];
        if ((*gpu)->lost) return GPU_IS_LOST;
        int code = SUCCESS;
        for (int i = 0; i < (*gpu)->outcome_count; i++) {
            if (strcmp((*gpu)->outcomes[i].call, call) == 0) code = (*gpu)->outcomes[i].code;
        }
        if (code >= 0) return code;
        wait_a_little();
    }
    return UNKNOWN;
}

static int read_figure(void *device, enum figure figure, unsigned long long *value) {
    struct scenario scenario;
    struct gpu *gpu;
    int code = begin(&scenario, device, FIGURE_NAMES[figure], &gpu);
    if (code != SUCCESS) return code;
    if (!gpu->given[figure]) return NOT_SUPPORTED;
    *value = gpu->figures[figure];
    return SUCCESS;
}

static int read_unsigned(void *device, enum figure figure, unsigned int *value) {
    unsigned long long wide = 0;
    int code = read_figure(device, figure, &wide);
    if (code == SUCCESS) *value = (unsigned int)wide;
    return code;
}

static int copy_text(const char *text, char *buffer, unsigned int length) {
    if (strlen(text) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags) {
    struct scenario scenario;
    (void)flags;
    for (int waited = 0; waited < 6000; waited++) {
        load(&scenario);
        if (!scenario.init_hangs) return scenario.init_error;
        wait_a_little();
    }
    return UNKNOWN;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the fake driver";
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    struct scenario scenario;
    load(&scenario);
    *count = scenario.gpu_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    struct scenario scenario;
    struct gpu *gpu;
    if (index >= MAXIMUM_GPUS) return INVALID_ARGUMENT;
    handles[index].index = index;
    *device = &handles[index];
    return begin(&scenario, *device, "handle", &gpu);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    struct scenario scenario;
    load(&scenario);
    for (unsigned int index = 0; index < scenario.gpu_count; index++) {
        if (strcmp(scenario.gpus[index].uuid, uuid) == 0) {
            return nvmlDeviceGetHandleByIndex_v2(index, device);
        }
    }
    return INVALID_ARGUMENT;
}

int nvmlDeviceGetUUID(void *device, char *buffer, unsigned int length) {
    struct scenario scenario;
    struct gpu *gpu;
    int code = begin(&scenario, device, "uuid", &gpu);
    return code == SUCCESS ? copy_text(gpu->uuid, buffer, length) : code;
}

int nvmlDeviceGetName(void *device, char *buffer, unsigned int length) {
    struct scenario scenario;
    struct gpu *gpu;
    int code = begin(&scenario, device, "name", &gpu);
    return code == SUCCESS ? copy_text(gpu->name, buffer, length) : code;
}

struct utilization {
    unsigned int gpu;
    unsigned int memory;
};

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *utilization) {
    utilization->memory = 0;
    return read_unsigned(device, UTILIZATION, &utilization->gpu);
}

struct memory_v1 {
    unsigned long long total;
    unsigned long long free;
    unsigned long long used;
};

struct memory_v2 {
    unsigned int version;
    unsigned long long total;
    unsigned long long reserved;
    unsigned long long free;
    unsigned long long used;
};

static int read_memory(void *device, const char *call, struct memory_v2 *memory) {
    struct scenario scenario;
    struct gpu *gpu;
    int code = begin(&scenario, device, call, &gpu);
    if (code != SUCCESS) return code;
    if (!gpu->given[MEMORY_TOTAL] || !gpu->given[MEMORY_USED]) return NOT_SUPPORTED;
    memory->total = gpu->figures[MEMORY_TOTAL];
    memory->reserved = gpu->figures[MEMORY_RESERVED];
    memory->used = gpu->figures[MEMORY_USED];
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory_v1 *memory) {
    struct memory_v2 figures;
    int code = read_memory(device, "memory", &figures);
    if (code != SUCCESS) return code;
    memory->total = figures.total;
    memory->free = figures.free;
    /* The first version counts what the driver reserves as used. */
    memory->used = figures.used + figures.reserved;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory_v2 *memory) {
    struct memory_v2 figures;
    if (memory->version != (sizeof *memory | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    int code = read_memory(device, "memory_v2", &figures);
    if (code != SUCCESS) return code;
    figures.version = memory->version;
    *memory = figures;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) {
    return read_unsigned(device, POWER, milliwatts);
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    return read_figure(device, ENERGY, millijoules);
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) {
    if (sensor != 0) return INVALID_ARGUMENT;
    return read_unsigned(device, TEMPERATURE, celsius);
}

int nvmlDeviceGetClockInfo(void *device, int clock, unsigned int *megahertz) {
    if (clock != 1) return NOT_SUPPORTED;
    return read_unsigned(device, SM_CLOCK, megahertz);
}
