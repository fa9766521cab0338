/* The driver as a whole, and what a device is. */
#include <stdio.h>
#include <string.h>

#include "fake_nvml.h"

/* A handle is the address of one of these; the real library's handles are opaque pointers too. */
static char handles[MAXIMUM_GPUS];

void *handle_of(unsigned int index) { return &handles[index]; }

unsigned int index_of(void *device) {
    char *handle = device;
    return handle >= handles && handle < handles + MAXIMUM_GPUS ? (unsigned int)(handle - handles) : MAXIMUM_GPUS;
}

int copy_text(const char *text, char *buffer, unsigned int length) {
    if (strlen(text) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags) {
    struct answer answer;
    (void)flags;
    return end(&answer, begin(&answer, CALL_nvmlInitWithFlags));
}

int nvmlInit_v2(void) {
    struct answer answer;
    return end(&answer, begin(&answer, CALL_nvmlInit_v2));
}

int nvmlShutdown(void) {
    struct answer answer;
    return end(&answer, begin(&answer, CALL_nvmlShutdown));
}

const char *nvmlErrorString(int code) {
    static _Thread_local char text[48];
    snprintf(text, sizeof text, "error %d of the stand-in driver", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *buffer, unsigned int length) {
    struct answer answer;
    int code = begin(&answer, CALL_nvmlSystemGetDriverVersion);
    if (code == SUCCESS) code = copy_text(answer.scenario->driver_version, buffer, length);
    return end(&answer, code);
}

int nvmlSystemGetNVMLVersion(char *buffer, unsigned int length) {
    struct answer answer;
    char version[96] = "12.";
    int code = begin(&answer, CALL_nvmlSystemGetNVMLVersion);
    if (code == SUCCESS) {
        strncat(version, answer.scenario->driver_version, sizeof version - 4);
        code = copy_text(version, buffer, length);
    }
    return end(&answer, code);
}

static int cuda_version(enum call call, int *version) {
    struct answer answer;
    int code = begin(&answer, call);
    if (code == SUCCESS) *version = answer.scenario->cuda_version;
    return end(&answer, code);
}

int nvmlSystemGetCudaDriverVersion(int *version) { return cuda_version(CALL_nvmlSystemGetCudaDriverVersion, version); }

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    return cuda_version(CALL_nvmlSystemGetCudaDriverVersion_v2, version);
}

int nvmlSystemGetProcessName(unsigned int process_id, char *buffer, unsigned int length) {
    struct answer answer;
    char name[32];
    int code = begin(&answer, CALL_nvmlSystemGetProcessName);
    snprintf(name, sizeof name, "process-%u", process_id);
    if (code == SUCCESS) code = copy_text(name, buffer, length);
    return end(&answer, code);
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    struct answer answer;
    int code = begin(&answer, CALL_nvmlDeviceGetCount_v2);
    if (code == SUCCESS) *count = answer.scenario->gpu_count;
    return end(&answer, code);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    struct answer answer;
    if (index >= MAXIMUM_GPUS) return INVALID_ARGUMENT;
    int code = begin_on(&answer, CALL_nvmlDeviceGetHandleByIndex_v2, handle_of(index));
    if (code == SUCCESS) *device = handle_of(index);
    return end(&answer, code);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    struct answer answer;
    int code = begin(&answer, CALL_nvmlDeviceGetHandleByUUID);
    if (code != SUCCESS) return end(&answer, code);
    code = NOT_FOUND;
    for (unsigned int index = 0; index < answer.scenario->gpu_count; index++) {
        struct gpu *gpu = &answer.scenario->gpus[index];
        if (strcmp(gpu->uuid, uuid) != 0) continue;
        code = is_lost(&answer, index) ? GPU_IS_LOST : SUCCESS;
        *device = handle_of(index);
    }
    return end(&answer, code);
}

static void fill_pci(struct pci_info *pci, unsigned int index) {
    memset(pci, 0, sizeof *pci);
    pci->bus = index + 1;
    pci->pci_device_id = 0x223710de;
    pci->pci_subsystem_id = 0x152f10de;
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "0000:%02X:00.0", pci->bus & 0xff);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus & 0xff);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device) {
    struct answer answer;
    struct pci_info pci;
    int code = begin(&answer, CALL_nvmlDeviceGetHandleByPciBusId_v2);
    if (code != SUCCESS) return end(&answer, code);
    code = NOT_FOUND;
    for (unsigned int index = 0; index < answer.scenario->gpu_count; index++) {
        fill_pci(&pci, index);
        if (strcmp(pci.bus_id, bus_id) != 0 && strcmp(pci.bus_id_legacy, bus_id) != 0) continue;
        code = is_lost(&answer, index) ? GPU_IS_LOST : SUCCESS;
        *device = handle_of(index);
    }
    return end(&answer, code);
}

int nvmlDeviceGetPciInfo_v3(void *device, struct pci_info *pci) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetPciInfo_v3, device);
    if (code == SUCCESS) fill_pci(pci, answer.index);
    return end(&answer, code);
}

static int device_index(enum call call, void *device, unsigned int *index) {
    struct answer answer;
    int code = begin_on(&answer, call, device);
    if (code == SUCCESS) *index = answer.index;
    return end(&answer, code);
}

int nvmlDeviceGetIndex(void *device, unsigned int *index) { return device_index(CALL_nvmlDeviceGetIndex, device, index); }

int nvmlDeviceGetMinorNumber(void *device, unsigned int *number) {
    return device_index(CALL_nvmlDeviceGetMinorNumber, device, number);
}

int nvmlDeviceGetUUID(void *device, char *buffer, unsigned int length) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetUUID, device);
    return end(&answer, code == SUCCESS ? copy_text(answer.gpu->uuid, buffer, length) : code);
}

int nvmlDeviceGetName(void *device, char *buffer, unsigned int length) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetName, device);
    return end(&answer, code == SUCCESS ? copy_text(answer.gpu->name, buffer, length) : code);
}

int nvmlDeviceGetSerial(void *device, char *buffer, unsigned int length) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetSerial, device);
    return end(&answer, code == SUCCESS ? copy_text(answer.gpu->serial, buffer, length) : code);
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetCudaComputeCapability, device);
    *major = 8;
    *minor = 6;
    return end(&answer, code);
}

/* Modes that the stand-in does not model: all off, and no partitions of a device. */
static int mode_off(enum call call, void *device, unsigned int *mode) {
    struct answer answer;
    int code = begin_on(&answer, call, device);
    if (code == SUCCESS) *mode = 0;
    return end(&answer, code);
}

int nvmlDeviceGetPersistenceMode(void *device, unsigned int *mode) {
    return mode_off(CALL_nvmlDeviceGetPersistenceMode, device, mode);
}

int nvmlDeviceGetDisplayActive(void *device, unsigned int *mode) {
    return mode_off(CALL_nvmlDeviceGetDisplayActive, device, mode);
}

int nvmlDeviceGetDisplayMode(void *device, unsigned int *mode) {
    return mode_off(CALL_nvmlDeviceGetDisplayMode, device, mode);
}

int nvmlDeviceGetComputeMode(void *device, unsigned int *mode) {
    return mode_off(CALL_nvmlDeviceGetComputeMode, device, mode);
}

int nvmlDeviceIsMigDeviceHandle(void *device, unsigned int *is_mig) {
    return mode_off(CALL_nvmlDeviceIsMigDeviceHandle, device, is_mig);
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned int *count) {
    return mode_off(CALL_nvmlDeviceGetMaxMigDeviceCount, device, count);
}

/* What only other operating systems or products have. */
static int not_supported(enum call call, void *device) {
    struct answer answer;
    int code = begin_on(&answer, call, device);
    return end(&answer, code == SUCCESS ? NOT_SUPPORTED : code);
}

int nvmlDeviceGetMigMode(void *device, unsigned int *now, unsigned int *pending) {
    (void)now;
    (void)pending;
    return not_supported(CALL_nvmlDeviceGetMigMode, device);
}

int nvmlDeviceGetDriverModel(void *device, int *now, int *pending) {
    (void)now;
    (void)pending;
    return not_supported(CALL_nvmlDeviceGetDriverModel, device);
}

int nvmlDeviceGetDriverModel_v2(void *device, int *now, int *pending) {
    (void)now;
    (void)pending;
    return not_supported(CALL_nvmlDeviceGetDriverModel_v2, device);
}
