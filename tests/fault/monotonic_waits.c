/* Waits by the monotonic clock go to the C library, past libfaketime, whose wall clock they ignore.

   libfaketime 3.0.1 asks for the wall clock at every such wait and lets it end at once. CPython waits
   that way for the interpreter lock, for 5 ms at a time: two threads that compute then hand the lock
   to and fro without end, and take fifty times as long. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <time.h>

typedef int timed_wait(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);

static timed_wait *libc_wait, *faketime_wait;

__attribute__((constructor)) static void find_waits(void) {
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    libc_wait = (timed_wait *)dlsym(libc, "pthread_cond_timedwait");
    faketime_wait = (timed_wait *)dlsym(RTLD_NEXT, "pthread_cond_timedwait");
}

int pthread_cond_timedwait(
    pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline) {
    /* glibc keeps the condition's clock there (nptl/pthread_cond_common.c): set if monotonic. */
    int monotonic = condition->__data.__wrefs & 2;
    return (monotonic ? libc_wait : faketime_wait)(condition, mutex, deadline);
}
