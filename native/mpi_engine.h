/*
 * The mpi engine; compiled by mpi_int.c and mpi_pointer.c.
 *
 * Wire protocol, the same as commbench/channels/mpi_python.py speaks: requests to a peer carry tag
 * TAG_REQUEST and keep their order; the reply to the k-th request carries TAG_REPLY + k mod `lanes`,
 * where both ends count k, so replies may overtake each other.
 *
 * The shapes that must cost what plain C costs are written out and block inside MPI, where no stop
 * flag is seen: exchange() is MPI_Send + MPI_Recv, a server with one peer and window 1 is MPI_Recv +
 * MPI_Send, and one-way windows to one peer are osu_bw's Isend or Irecv, Waitall and the ack.
 * Everything else (and every other mode) starts requests and looks at them with MPI_Testsome.
 */
#include "mpi_library.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mpi_wire.h"
#include "mpi_state.h"
#include "mpi_requests.h"
#include "mpi_ask.h"
#include "mpi_serve.h"
#include "mpi_case.h"

static const char *last_error(void *self)
{
    return ((mpi *)self)->l.error;
}

static uint64_t copied(void *self)
{
    return ((mpi *)self)->l.copied;
}

static const cb_channel_ops ops = {
    .abi_version = COMMBENCH_ABI_VERSION,
    .struct_size = sizeof(cb_channel_ops),
    .prepare = prepare,
    .finish = finish,
    .post = post,
    .poll = poll,
    .exchange = exchange,
    .accept = accept,
    .answer = answer,
    .progress = progress,
    .last_error = last_error,
    .copied = copied,
};

cb_engine *MPI_OPEN(const cb_mpi_library *from)
{
    mpi *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->engine = (cb_engine){COMMBENCH_ABI_VERSION, sizeof m->engine, &ops, m};
    memcpy(&m->l.mpi, from->call, sizeof m->l.mpi);
    m->l.comm = (handle)(intptr_t)from->comm;
    m->l.byte = (handle)(intptr_t)from->byte;
    m->l.null = (handle)(intptr_t)from->request_null;
    m->l.status_nbytes = from->status_nbytes;
    m->l.error_at = from->error_at;
    m->l.count_at = from->count_at;
    m->l.error_in_status = from->error_in_status;
    m->l.error_pending = from->error_pending;
    m->l.undefined = from->undefined;
    m->l.pack = from->pack;
    m->mode = (enum cb_mpi_mode)from->mode;
    return &m->engine;
}

void MPI_CLOSE(cb_engine *engine)
{
    finish(engine->self);
    free(engine->self);
}
