/* Event sets: each hands every event of its devices out once, in the order of their serials. */
#include <stdlib.h>
#include <time.h>

#include "fake_nvml.h"

struct event_set {
    unsigned long long registered_serials[MAXIMUM_GPUS]; /* the last event handed out, by device */
    char registered[MAXIMUM_GPUS];
    unsigned int shutdowns; /* of the library when the set was made: it ends with the library */
};

static int has_happened(const struct answer *answer, const struct event *event) {
    return event->moment == 0 || answer->scenario->times.started + event->moment <= answer->now;
}

int nvmlEventSetCreate(void **set) {
    struct answer answer;
    int code = begin(&answer, CALL_nvmlEventSetCreate);
    if (code == SUCCESS) {
        *set = calloc(1, sizeof(struct event_set));
        if (!*set) code = UNKNOWN;
        else ((struct event_set *)*set)->shutdowns = shutdown_count();
    }
    return end(&answer, code);
}

int nvmlEventSetFree(void *set) {
    struct answer answer;
    int code = begin(&answer, CALL_nvmlEventSetFree);
    free(set);
    return end(&answer, code);
}

int nvmlDeviceGetSupportedEventTypes(void *device, unsigned long long *types) {
    struct answer answer;
    int code = begin_on(&answer, CALL_nvmlDeviceGetSupportedEventTypes, device);
    if (code == SUCCESS) *types = EVENT_XID;
    return end(&answer, code);
}

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *handle) {
    struct answer answer;
    struct event_set *set = handle;
    int code = begin_on(&answer, CALL_nvmlDeviceRegisterEvents, device);
    if (code == SUCCESS && types != EVENT_XID) code = NOT_SUPPORTED;
    if (code == SUCCESS) {
        /* What happened before is not told. */
        set->registered[answer.index] = 1;
        for (unsigned int i = 0; i < answer.scenario->event_count; i++) {
            const struct event *event = &answer.scenario->events[i];
            unsigned long long *last = &set->registered_serials[answer.index];
            if (event->gpu == answer.index && has_happened(&answer, event) && event->serial > *last) *last = event->serial;
        }
    }
    return end(&answer, code);
}

static const struct event *next_event(const struct answer *answer, const struct event_set *set) {
    const struct event *next = NULL;
    for (unsigned int i = 0; i < answer->scenario->event_count; i++) {
        const struct event *event = &answer->scenario->events[i];
        if (!set->registered[event->gpu] || event->serial <= set->registered_serials[event->gpu]) continue;
        if (has_happened(answer, event) && (!next || event->serial < next->serial)) next = event;
    }
    return next;
}

int nvmlEventSetWait_v2(void *handle, struct event_data *data, unsigned int timeout_milliseconds) {
    static const struct timespec PAUSE = {0, 5 * 1000 * 1000};
    struct event_set *set = handle;
    struct answer answer;
    long long until = now_microseconds() + timeout_milliseconds * 1000ll;
    int code = begin(&answer, CALL_nvmlEventSetWait_v2);
    while (code == SUCCESS) {
        if (set->shutdowns != shutdown_count()) {
            code = INVALID_ARGUMENT;
            break;
        }
        const struct event *event = next_event(&answer, set);
        if (event) {
            set->registered_serials[event->gpu] = event->serial;
            *data = (struct event_data){handle_of(event->gpu), EVENT_XID, event->xid, NO_INSTANCE, NO_INSTANCE};
            break;
        }
        if (now_microseconds() >= until) {
            code = TIMEOUT;
            break;
        }
        nanosleep(&PAUSE, NULL);
        release(answer.scenario);
        answer.scenario = acquire();
        answer.now = now_microseconds();
        if (!answer.scenario) code = UNKNOWN;
        else if (answer.scenario->unloaded) code = DRIVER_NOT_LOADED;
    }
    return end(&answer, code);
}
