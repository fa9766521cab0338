/* The parts of the stand-in, as they see each other. README.md describes scenario files. */
#ifndef FAKE_NVML_H
#define FAKE_NVML_H

#include "abi.h"

#define MAXIMUM_GPUS 64
#define MAXIMUM_OUTCOMES 64
#define MAXIMUM_FIELDS 64
#define MAXIMUM_PROCESSES 64
#define MAXIMUM_EVENTS 4096
#define MAXIMUM_TEXT 96
#define RINGS 4

enum call {
#define CALL(function, short_name) CALL_##function,
#include "calls.def"
#undef CALL
    CALLS
};

enum figure {
    UTILIZATION, MEMORY_UTILIZATION, MEMORY_TOTAL, MEMORY_USED, MEMORY_RESERVED, POWER, POWER_LIMIT,
    ENERGY, TEMPERATURE, MEMORY_TEMPERATURE, SM_CLOCK, MEMORY_CLOCK, GRAPHICS_CLOCK, VIDEO_CLOCK,
    MAX_SM_CLOCK, MAX_MEMORY_CLOCK, CLOCK_EVENT_REASONS, PCIE_TX, PCIE_RX, PCIE_TX_BYTES,
    PCIE_RX_BYTES, PCIE_REPLAYS, ECC_CORRECTED, ECC_UNCORRECTED, FAN, ENCODER, DECODER,
    PERFORMANCE_STATE, FIGURES
};

extern const char *const FIGURE_NAMES[FIGURES];

/* signal.c: a figure over time. Moments are microseconds since 1970. */
struct point {
    long long microseconds;
    double value;
};

struct signal {
    enum { ABSENT, CONSTANT, BURST, RATE, TRACE } kind;
    double low, high; /* a rate's start and growth per second */
    long long period, width, phase;
    struct point *points;
    unsigned int point_count;
};

struct times {
    long long started; /* time 0 of bursts and traces */
    long long loaded;  /* counters count from here */
};

int parse_signal(struct signal *signal, const char *text);
void free_signal(struct signal *signal);
double signal_at(const struct signal *signal, const struct times *times, long long moment);
double signal_mean(const struct signal *signal, const struct times *times, long long from, long long to);
long long now_microseconds(void);

/* scenario.c */
struct outcome {
    char call[56];
    int code; /* HANG, or what the call returns */
};
#define HANG (-1)

struct latency {
    char call[56];
    long long microseconds;
};

struct ring {
    long long period;
    unsigned int capacity;
    enum { RING_FILLED, RING_EMPTY, RING_EMPTY_WHEN_IDLE, RING_UNSUPPORTED } state;
};

struct field {
    unsigned int id;
    int status;
    struct signal signal;
};

struct process {
    unsigned int id;
    unsigned long long memory;
    int graphics;
};

struct event {
    unsigned long long serial;
    unsigned int gpu;
    unsigned int xid;
    long long moment; /* offset from the scenario's start; 0: at once */
};

struct gpu {
    char uuid[MAXIMUM_TEXT];
    char name[MAXIMUM_TEXT];
    char serial[MAXIMUM_TEXT];
    struct signal figures[FIGURES];
    struct ring rings[RINGS]; /* by ring_index() */
    struct outcome outcomes[MAXIMUM_OUTCOMES];
    unsigned int outcome_count;
    struct latency latencies[MAXIMUM_OUTCOMES];
    unsigned int latency_count;
    struct field fields[MAXIMUM_FIELDS];
    unsigned int field_count;
    struct process processes[MAXIMUM_PROCESSES];
    unsigned int process_count;
    int lost;
};

struct scenario {
    int references;
    char driver_version[80];
    int cuda_version;
    int serialized;
    int hangs;
    int unloaded;
    int keeps_losses;
    struct times times;
    struct outcome outcomes[MAXIMUM_OUTCOMES];
    unsigned int outcome_count;
    struct latency latencies[MAXIMUM_OUTCOMES];
    unsigned int latency_count;
    struct event *events;
    unsigned int event_count;
    unsigned int gpu_count;
    struct gpu *gpus; /* MAXIMUM_GPUS of them */
};

/* The scenario as the file is now, or NULL without one; give it back with release(). */
struct scenario *acquire(void);
void release(struct scenario *scenario);
int outcome_of(const struct outcome *outcomes, unsigned int count, const char *function, const char *short_name);
/* Returns the ring of a sampling type, or -1. */
int ring_index(int sampling_type);

/* calls.c: what happens to each call before it answers. */
struct answer {
    struct scenario *scenario;
    struct gpu *gpu;
    unsigned int index;
    enum call call;
    long long began, processor_began;
    long long now;
};

/* Counts the call, waits as the scenario says and returns what it says; every begin needs an end(). */
int begin(struct answer *answer, enum call call);
int begin_on(struct answer *answer, enum call call, void *device);
/* As above for a part of a call that has a name of its own, such as a field or a clock. */
/* How often the library ended in this process; what belonged to an earlier run of it is invalid. */
unsigned int shutdown_count(void);
/* Whether this process finds the GPU lost; a driver that keeps losses says so until it starts anew. */
int is_lost(const struct answer *answer, unsigned int index);
int begin_part(struct answer *answer, const char *part);
int end(struct answer *answer, int code);

/* devices.c */
void *handle_of(unsigned int index);
/* Returns the index of a handle, or MAXIMUM_GPUS when it is none of ours. */
unsigned int index_of(void *device);

/* figures.c */
int figure_value(const struct answer *answer, enum figure figure, double *value);
int copy_text(const char *text, char *buffer, unsigned int length);

#endif
