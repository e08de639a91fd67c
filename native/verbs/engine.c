/*
 * The grpc+verbs engine: TensorFlow's gRPC+Verbs with its messages.
 *
 * Every message of ours is a tensor that its receiver asks for, as in TensorFlow (see tensor_ring.h).
 * For a tensor the receiver writes a TENSOR_REQUEST into the message buffer of its owner. A control
 * message is a write with immediate data; the other end gives an ACK when its buffer may be written
 * again: so one is on its way in each direction. Then
 *   v2   the owner writes the content into the receiver's memory, if the request said where and how
 *        long it is, and else first META_DATA_UPDATE, which the receiver answers with
 *        TENSOR_RE_REQUEST. The content's immediate data is the request_index.
 *   gdr  the owner answers with REMOTE_MEMORY_REGION, the receiver reads from there and frees it by a
 *        write of nothing, whose immediate data is the key of the region.
 *   v1   see v1.h.
 *
 * Each process has one thread that takes the completions. The thread of the loop shares the lock with
 * it and sleeps while it waits, as TensorFlow's threads do.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "../rdma/regions.h"
#include "verbs.h"

#define CHANNEL "the grpc+verbs channel"
#define IDLE_TURNS 256u

#include "../tensor_ring.h"
#include "state.h"
#include "message.h"
#include "../tensor_threads.h"
#include "post.h"
#include "tensors.h"
#include "../tensor_table.h"
#include "arrive.h"
#include "v2.h"
#include "gdr.h"
#include "v1.h"
#include "receive.h"
#include "thread.h"
#include "../tensor_verbs.h"
#include "case.h"
#include "device.h"
#include "../tensor_ops.h"

cb_verbs *cb_verbs_open(const cb_verbs_options *options, char error[256], int *code)
{
    engine *e = calloc(1, sizeof *e);
    conn *conns = calloc(options->size, sizeof *conns);
    if (!e || !conns) {
        free(e);
        free(conns);
        snprintf(error, 256, "out of memory");
        *code = ENOMEM;
        return NULL;
    }
    e->engine = (cb_engine){COMMBENCH_ABI_VERSION, sizeof e->engine, &ops, e};
    e->o = *options;
    e->conns = conns;
    e->rank = (int32_t)options->rank;
    e->wake = e->either = -1;
    int rc = open_device(e);
    e->o.device = e->name;
    if (rc == 0)
        return e;
    snprintf(error, 256, "%s", e->error);
    *code = -rc;
    cb_verbs_free(e);
    return NULL;
}

cb_engine *cb_verbs_engine(cb_verbs *e)
{
    return &e->engine;
}

cb_verbs_limits cb_verbs_limits_of(const cb_verbs *e)
{
    return e->limits;
}

cb_verbs_counters cb_verbs_count(const cb_verbs *e)
{
    cb_verbs_counters c;
#define LOAD(name) c.name = __atomic_load_n(&e->counters.name, __ATOMIC_RELAXED);
    CB_VERBS_COUNTERS(LOAD)
#undef LOAD
    return c;
}

uint64_t cb_verbs_sent(const cb_verbs *e)
{
    return __atomic_load_n(&e->sent_nbytes, __ATOMIC_RELAXED);
}

uint32_t cb_verbs_regions(const cb_verbs *e)
{
    return e->regions.count;
}

uint32_t cb_verbs_write_message(char *to, uint8_t type, const char *name, uint64_t step,
                                uint64_t index, uint64_t address, uint32_t rkey, uint64_t nbytes)
{
    message m = {.type = type, .step = step, .index = index, .address = address, .rkey = rkey,
                 .nbytes = nbytes, .data_type = DT_UINT8, .status = name,
                 .status_nbytes = (uint32_t)strlen(name)};
    m.name_nbytes = (uint16_t)snprintf(m.name, sizeof m.name, "%s", name);
    return write_message(to, &m);
}
