/* Figures that change with time. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <stdio.h>

#include "fake_nvml.h"

long long now_microseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

void free_signal(struct signal *signal) {
    free(signal->points);
    memset(signal, 0, sizeof *signal);
}

static int parse_trace(struct signal *signal, const char *text) {
    unsigned int room = 64, count = 0;
    struct point *points = malloc(room * sizeof *points);
    long long moment;
    double value;
    int length;
    while (points && sscanf(text, " %lld:%lf%n", &moment, &value, &length) == 2) {
        if (count == room) {
            struct point *larger = realloc(points, (room *= 2) * sizeof *points);
            if (!larger) break;
            points = larger;
        }
        points[count++] = (struct point){moment, value};
        text += length;
    }
    if (count == 0) {
        free(points);
        return 0;
    }
    signal->kind = TRACE;
    signal->points = points;
    signal->point_count = count;
    return 1;
}

/* Reads what README.md lists as signals; returns 0 and leaves the figure out for anything else. */
int parse_signal(struct signal *signal, const char *text) {
    double period, width, phase = 0;
    free_signal(signal);
    if (strncmp(text, "trace ", 6) == 0) return parse_trace(signal, text + 6);
    if (sscanf(text, "burst %lf %lf %lf %lf %lf", &signal->low, &signal->high, &period, &width, &phase) >= 4) {
        signal->kind = period > 0 ? BURST : ABSENT;
        signal->period = (long long)(period * 1000);
        signal->width = (long long)(width * 1000);
        signal->phase = (long long)(phase * 1000);
    } else if (sscanf(text, "rate %lf %lf", &signal->low, &signal->high) == 2) {
        signal->kind = RATE;
    } else if (sscanf(text, "%lf", &signal->low) == 1) {
        signal->kind = CONSTANT;
    }
    return signal->kind != ABSENT;
}

/* Time spent high from time 0 to `moment`; negative before it, so that differences are right. */
static double time_high(const struct signal *signal, long long moment) {
    long long since = moment - signal->phase;
    long long periods = since / signal->period, rest = since % signal->period;
    if (rest < 0) {
        rest += signal->period;
        periods--;
    }
    return (double)periods * (double)signal->width + (double)(rest < signal->width ? rest : signal->width);
}

static double trace_at(const struct signal *signal, long long moment) {
    unsigned int low = 0, high = signal->point_count;
    while (high - low > 1) {
        unsigned int middle = (low + high) / 2;
        if (signal->points[middle].microseconds <= moment) low = middle;
        else high = middle;
    }
    return signal->points[low].value;
}

double signal_at(const struct signal *signal, const struct times *times, long long moment) {
    long long since = moment - times->started;
    switch (signal->kind) {
    case BURST: {
        long long rest = (since - signal->phase) % signal->period;
        if (rest < 0) rest += signal->period;
        return rest < signal->width ? signal->high : signal->low;
    }
    case RATE: return signal->low + signal->high * (double)(moment - times->loaded) / 1e6;
    case TRACE: return trace_at(signal, since);
    default: return signal->low;
    }
}

double signal_mean(const struct signal *signal, const struct times *times, long long from, long long to) {
    if (to <= from) return signal_at(signal, times, to);
    if (signal->kind == BURST) {
        double high = time_high(signal, to - times->started) - time_high(signal, from - times->started);
        return signal->low + (signal->high - signal->low) * high / (double)(to - from);
    }
    /* A trace holds what a ring told; its points are means already. */
    if (signal->kind == TRACE) return signal_at(signal, times, to);
    return (signal_at(signal, times, from) + signal_at(signal, times, to)) / 2;
}
