/* Reads scenario files; README.md describes them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fake_nvml.h"

const char *const FIGURE_NAMES[FIGURES] = {
    "utilization", "memory_utilization", "memory_total", "memory_used", "memory_reserved", "power",
    "power_limit", "energy", "temperature", "memory_temperature", "sm_clock", "memory_clock",
    "graphics_clock", "video_clock", "max_sm_clock", "max_memory_clock", "clock_event_reasons",
    "pcie_tx", "pcie_rx", "pcie_tx_bytes", "pcie_rx_bytes", "pcie_replays", "ecc_corrected",
    "ecc_uncorrected", "fan", "encoder", "decoder", "performance_state"};

static const struct {
    const char *name;
    int sampling_type;
    long long period;
} RING_KINDS[RINGS] = {
    {"power", SAMPLE_POWER, 20000},
    {"utilization", SAMPLE_UTILIZATION, 166667},
    {"memory_utilization", SAMPLE_MEMORY_UTILIZATION, 166667},
    {"sm_clock", SAMPLE_SM_CLOCK, 166667},
};

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static struct scenario *current;
static struct stat current_file;
static long long first_use;

int ring_index(int sampling_type) {
    for (int ring = 0; ring < RINGS; ring++) {
        if (RING_KINDS[ring].sampling_type == sampling_type) return ring;
    }
    return -1;
}

static void add_outcome(struct outcome *outcomes, unsigned int *count, const char *call, int code) {
    if (*count < MAXIMUM_OUTCOMES) {
        struct outcome *outcome = &outcomes[(*count)++];
        snprintf(outcome->call, sizeof outcome->call, "%s", call);
        outcome->code = code;
    }
}

/* The last word on a call counts; "all" is about every call. */
int outcome_of(const struct outcome *outcomes, unsigned int count, const char *function, const char *short_name) {
    int code = SUCCESS;
    for (unsigned int i = 0; i < count; i++) {
        const char *call = outcomes[i].call;
        if (strcmp(call, function) == 0 || strcmp(call, short_name) == 0 || strcmp(call, "all") == 0) {
            code = outcomes[i].code;
        }
    }
    return code;
}

static void read_ring(struct gpu *gpu, const char *text) {
    char name[24], word[24];
    if (sscanf(text, "%23s %23s", name, word) != 2) return;
    for (int kind = 0; kind < RINGS; kind++) {
        struct ring *ring = &gpu->rings[kind];
        double period;
        if (strcmp(name, RING_KINDS[kind].name) != 0) continue;
        if (strcmp(word, "empty") == 0) ring->state = RING_EMPTY;
        else if (strcmp(word, "empty_when_idle") == 0) ring->state = RING_EMPTY_WHEN_IDLE;
        else if (strcmp(word, "unsupported") == 0) ring->state = RING_UNSUPPORTED;
        else if (sscanf(text, "%*s %lf %u", &period, &ring->capacity) >= 1) ring->period = (long long)(period * 1000);
        if (ring->period < 1) ring->period = RING_KINDS[kind].period;
    }
}

static void read_field(struct gpu *gpu, const char *text) {
    unsigned int id;
    int code, offset = 0;
    if (gpu->field_count == MAXIMUM_FIELDS || sscanf(text, "%u %n", &id, &offset) != 1) return;
    struct field *field = &gpu->fields[gpu->field_count];
    field->id = id;
    if (sscanf(text + offset, "fail %d", &code) == 1) field->status = code;
    else if (!parse_signal(&field->signal, text + offset)) return;
    gpu->field_count++;
}

static int read_shared_statement(struct outcome *outcomes, unsigned int *outcome_count, struct latency *latencies,
                                 unsigned int *latency_count, const char *text) {
    char call[56];
    int code;
    double microseconds;
    if (sscanf(text, "fail %55s %d", call, &code) == 2) {
        add_outcome(outcomes, outcome_count, call, code);
    } else if (sscanf(text, "hang %55s", call) == 1) {
        add_outcome(outcomes, outcome_count, call, HANG);
    } else if (sscanf(text, "latency %55s %lf", call, &microseconds) == 2) {
        if (*latency_count < MAXIMUM_OUTCOMES) {
            struct latency *latency = &latencies[(*latency_count)++];
            snprintf(latency->call, sizeof latency->call, "%s", call);
            latency->microseconds = (long long)microseconds;
        }
    } else {
        return 0;
    }
    return 1;
}

static void read_gpu_statement(struct gpu *gpu, const char *statement) {
    char word[24];
    int offset = 0;
    if (sscanf(statement, "%23s %n", word, &offset) < 1) return;
    const char *rest = statement + offset;
    if (read_shared_statement(gpu->outcomes, &gpu->outcome_count, gpu->latencies, &gpu->latency_count, statement)) {
        return;
    } else if (strcmp(word, "lost") == 0) {
        gpu->lost = 1;
    } else if (strcmp(word, "uuid") == 0) {
        snprintf(gpu->uuid, sizeof gpu->uuid, "%s", rest);
    } else if (strcmp(word, "name") == 0) {
        snprintf(gpu->name, sizeof gpu->name, "%s", rest);
    } else if (strcmp(word, "serial") == 0) {
        snprintf(gpu->serial, sizeof gpu->serial, "%s", rest);
    } else if (strcmp(word, "ring") == 0) {
        read_ring(gpu, rest);
    } else if (strcmp(word, "field") == 0) {
        read_field(gpu, rest);
    } else if (strcmp(word, "process") == 0 || strcmp(word, "graphics_process") == 0) {
        struct process process = {.graphics = word[0] == 'g'};
        if (gpu->process_count < MAXIMUM_PROCESSES && sscanf(rest, "%u %llu", &process.id, &process.memory) == 2) {
            gpu->processes[gpu->process_count++] = process;
        }
    } else {
        for (int figure = 0; figure < FIGURES; figure++) {
            if (strcmp(word, FIGURE_NAMES[figure]) == 0) parse_signal(&gpu->figures[figure], rest);
        }
    }
}

static void read_driver_statement(struct scenario *scenario, const char *text) {
    int code;
    if (strcmp(text, "hang everything") == 0) scenario->hangs = 1;
    else if (strcmp(text, "serialized") == 0) scenario->serialized = 1;
    else if (strcmp(text, "unloaded") == 0) scenario->unloaded = 1;
    else if (strcmp(text, "keeps_losses") == 0) scenario->keeps_losses = 1;
    else if (sscanf(text, "init_error %d", &code) == 1) {
        add_outcome(scenario->outcomes, &scenario->outcome_count, "init", code);
    } else if (sscanf(text, "version %79s", scenario->driver_version) == 1) {
    } else if (sscanf(text, "cuda_version %d", &scenario->cuda_version) == 1) {
    } else if (sscanf(text, "started %lld", &scenario->times.started) == 1) {
    } else if (sscanf(text, "loaded %lld", &scenario->times.loaded) == 1) {
    } else {
        read_shared_statement(scenario->outcomes, &scenario->outcome_count, scenario->latencies,
                              &scenario->latency_count, text);
    }
}

static void read_statement(struct scenario *scenario, const char *line) {
    unsigned int index;
    int offset = 0;
    struct event event = {0};
    if (sscanf(line, "gpu %u %n", &index, &offset) == 1 && offset && index < MAXIMUM_GPUS) {
        if (index >= scenario->gpu_count) scenario->gpu_count = index + 1;
        read_gpu_statement(&scenario->gpus[index], line + offset);
    } else if (sscanf(line, "event %llu gpu %u xid %u %lld", &event.serial, &event.gpu, &event.xid, &event.moment) >= 3) {
        if (scenario->event_count < MAXIMUM_EVENTS && event.gpu < MAXIMUM_GPUS) {
            scenario->events[scenario->event_count++] = event;
        }
    } else if (strncmp(line, "driver ", 7) == 0) {
        read_driver_statement(scenario, line + 7);
    }
}

static struct scenario *read_scenario(FILE *file) {
    struct scenario *scenario = calloc(1, sizeof *scenario);
    if (!scenario) return NULL;
    scenario->gpus = calloc(MAXIMUM_GPUS, sizeof *scenario->gpus);
    scenario->events = calloc(MAXIMUM_EVENTS, sizeof *scenario->events);
    scenario->references = 1;
    scenario->cuda_version = 12080;
    scenario->times = (struct times){first_use, 0};
    strcpy(scenario->driver_version, "570.00.00");
    if (!scenario->gpus || !scenario->events) return scenario;
    for (unsigned int index = 0; index < MAXIMUM_GPUS; index++) {
        struct gpu *gpu = &scenario->gpus[index];
        snprintf(gpu->serial, sizeof gpu->serial, "%u", 1320000000u + index);
        for (int kind = 0; kind < RINGS; kind++) gpu->rings[kind] = (struct ring){RING_KINDS[kind].period, 120, RING_FILLED};
    }
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, file) >= 0) {
        line[strcspn(line, "\r\n")] = '\0';
        read_statement(scenario, line);
    }
    free(line);
    if (scenario->times.loaded == 0) scenario->times.loaded = scenario->times.started;
    return scenario;
}

static void forget(struct scenario *scenario) {
    if (!scenario || --scenario->references > 0) return;
    for (unsigned int index = 0; scenario->gpus && index < MAXIMUM_GPUS; index++) {
        struct gpu *gpu = &scenario->gpus[index];
        for (int figure = 0; figure < FIGURES; figure++) free_signal(&gpu->figures[figure]);
        for (unsigned int field = 0; field < gpu->field_count; field++) free_signal(&gpu->fields[field].signal);
    }
    free(scenario->gpus);
    free(scenario->events);
    free(scenario);
}

static int same_file(const struct stat *one, const struct stat *other) {
    return one->st_ino == other->st_ino && one->st_size == other->st_size &&
           one->st_mtim.tv_sec == other->st_mtim.tv_sec && one->st_mtim.tv_nsec == other->st_mtim.tv_nsec &&
           one->st_ctim.tv_sec == other->st_ctim.tv_sec && one->st_ctim.tv_nsec == other->st_ctim.tv_nsec;
}

struct scenario *acquire(void) {
    const char *path = getenv("FAKE_NVML_SCENARIO");
    struct stat found;
    pthread_mutex_lock(&guard);
    if (first_use == 0) first_use = now_microseconds();
    if (path && stat(path, &found) == 0 && !(current && same_file(&found, &current_file))) {
        FILE *file = fopen(path, "r");
        if (file) {
            /* The file may have been replaced in between; what was opened is what is read. */
            fstat(fileno(file), &found);
            struct scenario *read = read_scenario(file);
            fclose(file);
            if (read) {
                forget(current);
                current = read;
                current_file = found;
            }
        }
    }
    struct scenario *scenario = path ? current : NULL;
    if (scenario) scenario->references++;
    pthread_mutex_unlock(&guard);
    return scenario;
}

void release(struct scenario *scenario) {
    pthread_mutex_lock(&guard);
    forget(scenario);
    pthread_mutex_unlock(&guard);
}
