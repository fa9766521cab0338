/*
 * What happens to each call before it answers: it is counted, delayed, held or refused as the scenario
 * says. Counts are kept in the file named by FAKE_NVML_COUNTS, which several processes may share and
 * a test may read at any time: one record for each function, in the order of calls.def.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fake_nvml.h"

static const char *const FUNCTIONS[CALLS] = {
#define CALL(function, short_name) #function,
#include "calls.def"
#undef CALL
};

static const char *const SHORT_NAMES[CALLS] = {
#define CALL(function, short_name) #short_name,
#include "calls.def"
#undef CALL
};

struct record {
    char function[48];
    _Atomic unsigned long long calls;
    _Atomic unsigned long long nanoseconds;
    _Atomic unsigned long long processor_nanoseconds;
};

static struct record own_records[CALLS];
static struct record *records = own_records;
static pthread_once_t opened = PTHREAD_ONCE_INIT;
static pthread_mutex_t driver_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int initialized;
static atomic_uint shutdowns;
static atomic_char losses[MAXIMUM_GPUS];

/* A hang looks at the scenario this often and gives up after a minute, should a test forget it. */
static const struct timespec PAUSE = {0, 10 * 1000 * 1000};
enum { PAUSES = 6000 };

static void open_records(void) {
    const char *path = getenv("FAKE_NVML_COUNTS");
    int file = path ? open(path, O_RDWR | O_CREAT, 0600) : -1;
    if (file >= 0) {
        if (ftruncate(file, sizeof own_records) == 0) {
            void *mapped = mmap(NULL, sizeof own_records, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            if (mapped != MAP_FAILED) records = mapped;
        }
        close(file);
    }
    for (int call = 0; call < CALLS; call++) strncpy(records[call].function, FUNCTIONS[call], sizeof records[call].function - 1);
}

/* How often a function was called in this process or, with a file of counts, in all; 0 for unknown ones. */
unsigned long long fakeNvmlCallCount(const char *function) {
    pthread_once(&opened, open_records);
    for (int call = 0; call < CALLS; call++) {
        if (strcmp(FUNCTIONS[call], function) == 0) return records[call].calls;
    }
    return 0;
}

static long long nanoseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static long long latency_of(const struct latency *latencies, unsigned int count, enum call call) {
    long long found = 0;
    for (unsigned int i = 0; i < count; i++) {
        const char *name = latencies[i].call;
        if (strcmp(name, FUNCTIONS[call]) == 0 || strcmp(name, SHORT_NAMES[call]) == 0 || strcmp(name, "all") == 0) {
            found = latencies[i].microseconds;
        }
    }
    return found;
}

static int outcome_now(struct answer *answer, const char *function, const char *short_name) {
    struct scenario *scenario = answer->scenario;
    if (scenario->hangs) return HANG;
    int code = outcome_of(scenario->outcomes, scenario->outcome_count, function, short_name);
    if (code != SUCCESS || !answer->gpu) return code;
    return outcome_of(answer->gpu->outcomes, answer->gpu->outcome_count, function, short_name);
}

static void take_scenario(struct answer *answer) {
    if (answer->scenario) release(answer->scenario);
    answer->scenario = acquire();
    answer->gpu = NULL;
    if (answer->scenario && answer->scenario->gpus && answer->index < answer->scenario->gpu_count) {
        answer->gpu = &answer->scenario->gpus[answer->index];
    }
    answer->now = now_microseconds();
}

/* Waits while the call hangs; returns what it answers. The scenario may be another one afterwards. */
static int settle(struct answer *answer, const char *function, const char *short_name) {
    int code = outcome_now(answer, function, short_name);
    for (int pauses = 0; code == HANG && pauses < PAUSES; pauses++) {
        nanosleep(&PAUSE, NULL);
        take_scenario(answer);
        if (!answer->scenario) return UNKNOWN;
        code = outcome_now(answer, function, short_name);
    }
    return code == HANG ? UNKNOWN : code;
}

static int prepare(struct answer *answer, enum call call, unsigned int index) {
    *answer = (struct answer){.index = index, .call = call, .began = nanoseconds(CLOCK_MONOTONIC)};
    answer->processor_began = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
    pthread_once(&opened, open_records);
    atomic_fetch_add(&records[call].calls, 1);
    take_scenario(answer);
    if (!answer->scenario) return UNKNOWN;

    long long latency = latency_of(answer->scenario->latencies, answer->scenario->latency_count, call);
    if (answer->gpu) latency += latency_of(answer->gpu->latencies, answer->gpu->latency_count, call);
    /* A serialized driver does one thing at a time, so whoever is slow or hangs holds all others up. */
    int serialized = answer->scenario->serialized;
    if (serialized) pthread_mutex_lock(&driver_lock);
    if (latency > 0) {
        struct timespec pause = {latency / 1000000, latency % 1000000 * 1000};
        nanosleep(&pause, NULL);
    }
    int code = settle(answer, FUNCTIONS[call], SHORT_NAMES[call]);
    if (serialized) pthread_mutex_unlock(&driver_lock);
    if (code == SUCCESS && answer->scenario->unloaded) code = DRIVER_NOT_LOADED;
    return code;
}

int begin(struct answer *answer, enum call call) {
    int code = prepare(answer, call, MAXIMUM_GPUS);
    int is_init = call == CALL_nvmlInitWithFlags || call == CALL_nvmlInit_v2;
    if (is_init && code == SUCCESS) atomic_fetch_add(&initialized, 1);
    if (!is_init && initialized == 0) return UNINITIALIZED;
    if (call == CALL_nvmlShutdown && atomic_fetch_sub(&initialized, 1) == 1) {
        for (unsigned int index = 0; index < MAXIMUM_GPUS; index++) losses[index] = 0;
        atomic_fetch_add(&shutdowns, 1);
    }
    return code;
}

unsigned int shutdown_count(void) { return shutdowns; }

int is_lost(const struct answer *answer, unsigned int index) {
    if (answer->scenario->gpus[index].lost) losses[index] = 1;
    return answer->scenario->keeps_losses ? losses[index] : answer->scenario->gpus[index].lost;
}

int begin_on(struct answer *answer, enum call call, void *device) {
    int code = prepare(answer, call, index_of(device));
    if (initialized == 0) return UNINITIALIZED;
    if (code != SUCCESS) return code;
    if (!answer->gpu) return INVALID_ARGUMENT;
    return is_lost(answer, answer->index) ? GPU_IS_LOST : SUCCESS;
}

int begin_part(struct answer *answer, const char *part) {
    int code = settle(answer, part, part);
    if (code == SUCCESS && !answer->gpu) return INVALID_ARGUMENT;
    return code;
}

int end(struct answer *answer, int code) {
    if (answer->scenario) release(answer->scenario);
    struct record *record = &records[answer->call];
    atomic_fetch_add(&record->nanoseconds, (unsigned long long)(nanoseconds(CLOCK_MONOTONIC) - answer->began));
    atomic_fetch_add(&record->processor_nanoseconds,
                     (unsigned long long)(nanoseconds(CLOCK_THREAD_CPUTIME_ID) - answer->processor_began));
    return code;
}
