/*
 * What the stand-in shares with callers of the NVIDIA management library: numbers and structure
 * layouts of its binary interface, in our own declarations. check_abi.c compares each of them with
 * NVIDIA's own header at development time; see README.md.
 */
#ifndef FAKE_NVML_ABI_H
#define FAKE_NVML_ABI_H

enum return_code {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

enum value_type { TYPE_DOUBLE = 0, TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };

enum sampling_type { SAMPLE_POWER = 0, SAMPLE_UTILIZATION = 1, SAMPLE_MEMORY_UTILIZATION = 2, SAMPLE_SM_CLOCK = 5 };

enum clock_type { CLOCK_GRAPHICS = 0, CLOCK_SM = 1, CLOCK_MEMORY = 2, CLOCK_VIDEO = 3 };

enum field_id {
    FIELD_ECC_CORRECTED = 3,
    FIELD_ECC_UNCORRECTED = 4,
    FIELD_MEMORY_TEMPERATURE = 82,
    FIELD_ENERGY = 83,
    FIELD_PCIE_REPLAYS = 94,
    FIELD_POWER_AVERAGE = 185,
    FIELD_POWER_INSTANT = 186,
    FIELD_POWER_CURRENT_LIMIT = 190,
    FIELD_PCIE_TRANSMIT_BYTES = 197,
    FIELD_PCIE_RECEIVE_BYTES = 198
};

#define EVENT_XID 8ull
#define NO_INSTANCE 0xFFFFFFFFu
#define MEMORY_VERSION_2 (sizeof(struct memory_v2) | 2u << 24)
#define TEMPERATURE_VERSION_1 (sizeof(struct temperature_v1) | 1u << 24)

struct utilization {
    unsigned int gpu;
    unsigned int memory;
};

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

struct bar1_memory {
    unsigned long long total;
    unsigned long long free;
    unsigned long long used;
};

struct temperature_v1 {
    unsigned int version;
    unsigned int sensor;
    int temperature;
};

union value {
    double as_double;
    unsigned int as_unsigned;
    unsigned long long as_unsigned_long_long;
};

struct sample {
    unsigned long long timestamp_microseconds;
    union value value;
};

struct field_value {
    unsigned int field_id;
    unsigned int scope_id;
    long long timestamp_microseconds;
    long long latency_microseconds;
    unsigned int value_type;
    int status;
    union value value;
};

struct process_v1 {
    unsigned int process_id;
    unsigned long long memory_used;
};

struct process_v2 {
    unsigned int process_id;
    unsigned long long memory_used;
    unsigned int gpu_instance_id;
    unsigned int compute_instance_id;
};

struct process_utilization {
    unsigned int process_id;
    unsigned long long timestamp_microseconds;
    unsigned int sm;
    unsigned int memory;
    unsigned int encoder;
    unsigned int decoder;
};

struct event_data {
    void *device;
    unsigned long long type;
    unsigned long long data;
    unsigned int gpu_instance_id;
    unsigned int compute_instance_id;
};

struct pci_info {
    char bus_id_legacy[16];
    unsigned int domain;
    unsigned int bus;
    unsigned int device;
    unsigned int pci_device_id;
    unsigned int pci_subsystem_id;
    char bus_id[32];
};

#endif
