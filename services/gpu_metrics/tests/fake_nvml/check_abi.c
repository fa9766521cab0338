/*
 * Compares our declarations with NVIDIA's header; nothing is run, it only has to compile. Use it by
 * `make check-abi HEADER=…`, see README.md.
 */
#include <stddef.h>

#include "abi.h"

#define SAME_SIZE(ours, theirs) _Static_assert(sizeof(ours) == sizeof(theirs), #ours " and " #theirs)
#define SAME_PLACE(ours, our_member, theirs, their_member)                                        \
    _Static_assert(offsetof(ours, our_member) == offsetof(theirs, their_member) &&                \
                       sizeof(((ours *)0)->our_member) == sizeof(((theirs *)0)->their_member),    \
                   #ours "." #our_member)
#define SAME_NUMBER(ours, theirs) _Static_assert((long long)(ours) == (long long)(theirs), #ours)

SAME_SIZE(struct utilization, nvmlUtilization_t);
SAME_PLACE(struct utilization, gpu, nvmlUtilization_t, gpu);
SAME_PLACE(struct utilization, memory, nvmlUtilization_t, memory);

SAME_SIZE(struct memory_v1, nvmlMemory_t);
SAME_PLACE(struct memory_v1, total, nvmlMemory_t, total);
SAME_PLACE(struct memory_v1, free, nvmlMemory_t, free);
SAME_PLACE(struct memory_v1, used, nvmlMemory_t, used);

SAME_SIZE(struct memory_v2, nvmlMemory_v2_t);
SAME_PLACE(struct memory_v2, version, nvmlMemory_v2_t, version);
SAME_PLACE(struct memory_v2, total, nvmlMemory_v2_t, total);
SAME_PLACE(struct memory_v2, reserved, nvmlMemory_v2_t, reserved);
SAME_PLACE(struct memory_v2, free, nvmlMemory_v2_t, free);
SAME_PLACE(struct memory_v2, used, nvmlMemory_v2_t, used);
SAME_NUMBER(MEMORY_VERSION_2, nvmlMemory_v2);

SAME_SIZE(struct bar1_memory, nvmlBAR1Memory_t);
SAME_PLACE(struct bar1_memory, total, nvmlBAR1Memory_t, bar1Total);
SAME_PLACE(struct bar1_memory, free, nvmlBAR1Memory_t, bar1Free);
SAME_PLACE(struct bar1_memory, used, nvmlBAR1Memory_t, bar1Used);

SAME_SIZE(struct temperature_v1, nvmlTemperature_v1_t);
SAME_PLACE(struct temperature_v1, sensor, nvmlTemperature_v1_t, sensorType);
SAME_PLACE(struct temperature_v1, temperature, nvmlTemperature_v1_t, temperature);
SAME_NUMBER(TEMPERATURE_VERSION_1, nvmlTemperature_v1);

SAME_SIZE(union value, nvmlValue_t);
SAME_SIZE(struct sample, nvmlSample_t);
SAME_PLACE(struct sample, timestamp_microseconds, nvmlSample_t, timeStamp);
SAME_PLACE(struct sample, value, nvmlSample_t, sampleValue);

SAME_SIZE(struct field_value, nvmlFieldValue_t);
SAME_PLACE(struct field_value, field_id, nvmlFieldValue_t, fieldId);
SAME_PLACE(struct field_value, scope_id, nvmlFieldValue_t, scopeId);
SAME_PLACE(struct field_value, timestamp_microseconds, nvmlFieldValue_t, timestamp);
SAME_PLACE(struct field_value, latency_microseconds, nvmlFieldValue_t, latencyUsec);
SAME_PLACE(struct field_value, value_type, nvmlFieldValue_t, valueType);
SAME_PLACE(struct field_value, status, nvmlFieldValue_t, nvmlReturn);
SAME_PLACE(struct field_value, value, nvmlFieldValue_t, value);

SAME_SIZE(struct process_v1, nvmlProcessInfo_v1_t);
SAME_PLACE(struct process_v1, process_id, nvmlProcessInfo_v1_t, pid);
SAME_PLACE(struct process_v1, memory_used, nvmlProcessInfo_v1_t, usedGpuMemory);
SAME_SIZE(struct process_v2, nvmlProcessInfo_v2_t);
SAME_PLACE(struct process_v2, process_id, nvmlProcessInfo_v2_t, pid);
SAME_PLACE(struct process_v2, memory_used, nvmlProcessInfo_v2_t, usedGpuMemory);
SAME_PLACE(struct process_v2, gpu_instance_id, nvmlProcessInfo_v2_t, gpuInstanceId);
SAME_PLACE(struct process_v2, compute_instance_id, nvmlProcessInfo_v2_t, computeInstanceId);

SAME_SIZE(struct process_utilization, nvmlProcessUtilizationSample_t);
SAME_PLACE(struct process_utilization, process_id, nvmlProcessUtilizationSample_t, pid);
SAME_PLACE(struct process_utilization, timestamp_microseconds, nvmlProcessUtilizationSample_t, timeStamp);
SAME_PLACE(struct process_utilization, sm, nvmlProcessUtilizationSample_t, smUtil);
SAME_PLACE(struct process_utilization, decoder, nvmlProcessUtilizationSample_t, decUtil);

SAME_SIZE(struct event_data, nvmlEventData_t);
SAME_PLACE(struct event_data, device, nvmlEventData_t, device);
SAME_PLACE(struct event_data, type, nvmlEventData_t, eventType);
SAME_PLACE(struct event_data, data, nvmlEventData_t, eventData);
SAME_PLACE(struct event_data, gpu_instance_id, nvmlEventData_t, gpuInstanceId);
SAME_PLACE(struct event_data, compute_instance_id, nvmlEventData_t, computeInstanceId);
SAME_NUMBER(EVENT_XID, nvmlEventTypeXidCriticalError);

SAME_SIZE(struct pci_info, nvmlPciInfo_t);
SAME_PLACE(struct pci_info, bus_id_legacy, nvmlPciInfo_t, busIdLegacy);
SAME_PLACE(struct pci_info, domain, nvmlPciInfo_t, domain);
SAME_PLACE(struct pci_info, bus, nvmlPciInfo_t, bus);
SAME_PLACE(struct pci_info, pci_device_id, nvmlPciInfo_t, pciDeviceId);
SAME_PLACE(struct pci_info, pci_subsystem_id, nvmlPciInfo_t, pciSubSystemId);
SAME_PLACE(struct pci_info, bus_id, nvmlPciInfo_t, busId);

SAME_NUMBER(UNINITIALIZED, NVML_ERROR_UNINITIALIZED);
SAME_NUMBER(INVALID_ARGUMENT, NVML_ERROR_INVALID_ARGUMENT);
SAME_NUMBER(NOT_SUPPORTED, NVML_ERROR_NOT_SUPPORTED);
SAME_NUMBER(NOT_FOUND, NVML_ERROR_NOT_FOUND);
SAME_NUMBER(INSUFFICIENT_SIZE, NVML_ERROR_INSUFFICIENT_SIZE);
SAME_NUMBER(DRIVER_NOT_LOADED, NVML_ERROR_DRIVER_NOT_LOADED);
SAME_NUMBER(TIMEOUT, NVML_ERROR_TIMEOUT);
SAME_NUMBER(GPU_IS_LOST, NVML_ERROR_GPU_IS_LOST);
SAME_NUMBER(ARGUMENT_VERSION_MISMATCH, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
SAME_NUMBER(UNKNOWN, NVML_ERROR_UNKNOWN);

SAME_NUMBER(TYPE_UNSIGNED_INT, NVML_VALUE_TYPE_UNSIGNED_INT);
SAME_NUMBER(TYPE_UNSIGNED_LONG_LONG, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG);
SAME_NUMBER(SAMPLE_POWER, NVML_TOTAL_POWER_SAMPLES);
SAME_NUMBER(SAMPLE_UTILIZATION, NVML_GPU_UTILIZATION_SAMPLES);
SAME_NUMBER(SAMPLE_MEMORY_UTILIZATION, NVML_MEMORY_UTILIZATION_SAMPLES);
SAME_NUMBER(SAMPLE_SM_CLOCK, NVML_PROCESSOR_CLK_SAMPLES);
SAME_NUMBER(CLOCK_GRAPHICS, NVML_CLOCK_GRAPHICS);
SAME_NUMBER(CLOCK_SM, NVML_CLOCK_SM);
SAME_NUMBER(CLOCK_MEMORY, NVML_CLOCK_MEM);
SAME_NUMBER(CLOCK_VIDEO, NVML_CLOCK_VIDEO);

SAME_NUMBER(FIELD_ECC_CORRECTED, NVML_FI_DEV_ECC_SBE_VOL_TOTAL);
SAME_NUMBER(FIELD_ECC_UNCORRECTED, NVML_FI_DEV_ECC_DBE_VOL_TOTAL);
SAME_NUMBER(FIELD_MEMORY_TEMPERATURE, NVML_FI_DEV_MEMORY_TEMP);
SAME_NUMBER(FIELD_ENERGY, NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION);
SAME_NUMBER(FIELD_PCIE_REPLAYS, NVML_FI_DEV_PCIE_REPLAY_COUNTER);
SAME_NUMBER(FIELD_POWER_AVERAGE, NVML_FI_DEV_POWER_AVERAGE);
SAME_NUMBER(FIELD_POWER_INSTANT, NVML_FI_DEV_POWER_INSTANT);
SAME_NUMBER(FIELD_POWER_CURRENT_LIMIT, NVML_FI_DEV_POWER_CURRENT_LIMIT);
SAME_NUMBER(FIELD_PCIE_TRANSMIT_BYTES, NVML_FI_DEV_PCIE_COUNT_TX_BYTES);
SAME_NUMBER(FIELD_PCIE_RECEIVE_BYTES, NVML_FI_DEV_PCIE_COUNT_RX_BYTES);
