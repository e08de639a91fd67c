/*
 * The grpc+mpi engine: TensorFlow's gRPC+MPI with its costs; compiled by grpc_mpi_int.c and
 * grpc_mpi_pointer.c.
 *
 * Every message of ours is a tensor that its receiver asks for, as in TensorFlow. A server asks ahead
 * for the requests of its peers, as many as it has room for: a Recv node of the graph does so when the
 * step begins. post() puts the request into the local table and asks for the reply; answer() puts the
 * reply. A tensor costs a message on TAG_REQUEST from the rank that wants it, and one on TAG_RESPONSE
 * (and one on TAG_CONTENT, see grpc_mpi_tensors.h) from the rank that has it.
 *
 * A key names owner, asker, the case and the kind; the step is the number of the exchange. All MPI
 * calls of a case are made by one thread. The thread of the loop shares the lock with it and sleeps
 * while it waits, as TensorFlow's threads do.
 */
#include "grpc_mpi_library.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHANNEL "the grpc+mpi channel"

#include "grpc_mpi_proto.h"
#include "tensor_ring.h"
#include "grpc_mpi_state.h"
#include "tensor_threads.h"
#include "grpc_mpi_tensors.h"
#include "tensor_table.h"
#include "grpc_mpi_receive.h"
#include "grpc_mpi_send.h"
#include "grpc_mpi_progress.h"
#include "tensor_verbs.h"
#include "grpc_mpi_case.h"
#include "tensor_ops.h"

static bool start_thread(engine *e)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->news, &monotonic);
    pthread_cond_init(&e->work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    e->parked = true;
    return pthread_create(&e->thread, NULL, progress_thread, e) == 0;
}

cb_engine *ENGINE_OPEN(const cb_grpc_mpi_library *from)
{
    engine *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->engine = (cb_engine){COMMBENCH_ABI_VERSION, sizeof e->engine, &ops, e};
    memcpy(&e->l.mpi, from->call, sizeof e->l.mpi);
    e->l.comm = (handle)(intptr_t)from->comm;
    e->l.byte = (handle)(intptr_t)from->byte;
    e->l.info_null = (handle)(intptr_t)from->info_null;
    e->l.any_source = from->any_source;
    e->l.source_at = from->source_at;
    e->rank = from->rank;
    e->optimal = from->optimal;
    e->sleeps = from->sleeps;
    if (start_thread(e))
        return &e->engine;
    free(e);
    return NULL;
}

/* A case that was not finished is given up: what is on its way stays in MPI, and its memory too. */
int ENGINE_STOP(cb_engine *at)
{
    engine *e = at->self;
    lock(e);
    e->quit = true;
    __atomic_store_n(&e->running, false, __ATOMIC_RELEASE);
    pthread_cond_signal(&e->work);
    int64_t until = monotonic_ns() + FINISH_NS;
    while (!e->gone && monotonic_ns() < until)
        wait_until(e, &e->news, until);
    if (e->c)
        e->failed = refuse(e, -ESHUTDOWN, "the channel is closed");
    int clean = e->gone && !e->c;
    unlock(e);
    return clean;
}

/* A thread that does not end in time hangs in MPI: it and its memory are left. */
void ENGINE_CLOSE(cb_engine *at)
{
    engine *e = at->self;
    ENGINE_STOP(at);
    if (!e->gone) {
        pthread_detach(e->thread);
        return;
    }
    pthread_join(e->thread, NULL);
    free(e->meetings);
    free(e);
}

void ENGINE_COUNT(cb_engine *at, cb_grpc_mpi_counters *counters)
{
    const engine *e = at->self;
    counters->requests = __atomic_load_n(&e->counters.requests, __ATOMIC_RELAXED);
    counters->responses = __atomic_load_n(&e->counters.responses, __ATOMIC_RELAXED);
    counters->contents = __atomic_load_n(&e->counters.contents, __ATOMIC_RELAXED);
    counters->tensors = __atomic_load_n(&e->counters.tensors, __ATOMIC_RELAXED);
    counters->copied_nbytes = __atomic_load_n(&e->counters.copied_nbytes, __ATOMIC_RELAXED);
}
