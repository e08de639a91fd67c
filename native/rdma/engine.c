/*
 * The rdma engine: RC queue pairs behind commbench_ops.h. wire.h says what goes over them.
 *
 * It is one translation unit, so that the way of a small message from a verb to the doorbell and from
 * the ring to its slot becomes one function each. Small messages are gathered by the device (or put
 * into the work request) and copied once, out of the receiver's ring; large ones are not copied.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "../tcp_wire.h"        /* places in a message */
#include "rdma.h"
#include "regions.h"
#include "wire.h"

#include "adapt.h"
#include "state.h"
#include "coalesce.h"
#include "srq.h"
#include "post.h"
#include "out.h"
#include "arrive.h"
#include "lone.h"

static conn *conn_of(rdma *r, int32_t peer)
{
    if (!r->c || peer < 0 || (uint32_t)peer >= r->o.size || !r->conns[peer].active)
        return NULL;
    return &r->conns[peer];
}

static void release_given(rdma *r)
{
    while (r->given.count > 0)
        r->arrivals[pop(&r->given)].state = FREE;
}

#include "wait.h"
#include "cases.h"
#include "device.h"

/* ------------------------------------------------------------------ the verbs */

static int start(conn *c, uint64_t ticket, const cb_iov *request, const cb_iov *reply)
{
    if (c->free.count == 0)
        return refuse(c->r, -EAGAIN, "the window is full");
    uint32_t slot = pop(&c->free);
    flight *f = flight_at(c, slot);
    *f = (flight){.ticket = ticket, .request = request, .reply = reply, .busy = true, .due = true};
    if (reply && says_again(c, FRAME_REQUEST, slot, request)) {
        repeat(c, slot);
        f->wr = c->wr_replied = c->wr;
        return ring_bell(c->r);
    }
    f->way = way_of_request(c, request->nbytes);
    if (c->r->o.adaptive && reply)
        f->since = now_ns();
    if (c->r->pool.block > 0 && request->n > 1) {
        f->joined = coalesce(c->r, c->base + slot, request);
        f->request = &f->joined;
    }
    return send_or_wait(c, OUT_REQUEST, slot);
}

static int post(void *self, int32_t peer, uint64_t ticket, const cb_iov *request,
                const cb_iov *reply)
{
    rdma *r = self;
    conn *c = conn_of(r, peer);
    if (!c || !r->c->asks)
        return refuse(r, -EINVAL, "post() to a rank that is no peer of this case");
    return start(c, ticket, request, reply);
}

static flight *retire(rdma *r)
{
    uint32_t at = pop(&r->done);
    conn *c = r->active[at / r->c->window];
    push(&c->free, at - c->base);
    r->flights[at].busy = false;
    return &r->flights[at];
}

static int poll_done(void *self, cb_done *done, uint32_t max, int64_t timeout_ns)
{
    rdma *r = self;
    uint32_t n = 0;
    int rc = wait_for(r, CB_COMPLETED, timeout_ns);
    if (rc < 0)
        return rc;
    for (; n < max && r->done.count > 0; n++) {
        flight *f = retire(r);
        done[n] = (cb_done){f->ticket, f->reply_nbytes};
    }
    return (int)n;
}

static int exchange(void *self, int32_t peer, const cb_iov *request, const cb_iov *reply,
                    uint64_t *reply_nbytes, int64_t timeout_ns)
{
    rdma *r = self;
    conn *c = conn_of(r, peer);
    if (!c || !r->c->asks || r->done.count > 0)
        return refuse(r, -EINVAL, "exchange() needs a peer with nothing in flight");
    int rc = start(c, 0, request, reply);
    if (rc == 0)
        rc = r->lone ? wait_for_lone(r, NULL, reply_nbytes, timeout_ns)
                     : wait_for(r, CB_COMPLETED, timeout_ns);
    if (rc == LONE_TAKEN)
        return 0;
    if (rc <= 0)
        return rc < 0 ? rc : refuse(r, -ETIMEDOUT, "no reply in time");
    *reply_nbytes = retire(r)->reply_nbytes;
    return 0;
}

static int accept_some(void *self, cb_incoming *in, uint32_t max, int64_t timeout_ns)
{
    rdma *r = self;
    uint32_t n = 0;
    release_given(r);
    int rc = r->lone && max > 0 ? wait_for_lone(r, in, NULL, timeout_ns)
                                : wait_for(r, CB_ARRIVED, timeout_ns);
    if (rc < 0 || rc == LONE_TAKEN)
        return rc < 0 ? rc : 1;
    for (; n < max && r->arrived.count > 0; n++) {
        uint32_t at = pop(&r->arrived);
        in[n] = r->arrivals[at].in;
        r->arrivals[at].state = OPEN;
        if (!in[n].wants_reply)
            push(&r->given, at);
    }
    return (int)n;
}

static int progress(void *self, int64_t timeout_ns)
{
    rdma *r = self;
    release_given(r);
    return wait_for(r, CB_COMPLETED | CB_ARRIVED, timeout_ns);
}

static int answer(void *self, uint64_t ticket, const cb_iov *message)
{
    rdma *r = self;
    arrival *a = r->c && r->c->serves && ticket < (uint64_t)r->c->window * r->c->npeers
                     ? &r->arrivals[ticket] : NULL;
    if (!a || a->state != OPEN || !a->in.wants_reply)
        return refuse(r, -EINVAL, "no such ticket to answer");
    if (message->nbytes > r->c->answer_nbytes)
        return refuse(r, -EMSGSIZE, "an answer is larger than this case announced");
    conn *c = &r->conns[a->in.peer];
    if (says_again(c, FRAME_REPLY, (uint32_t)ticket - c->base, message)) {
        repeat(c, (uint32_t)ticket - c->base);
        a->state = FREE;
        return ring_bell(r);
    }
    uint64_t blocks = (uint64_t)r->c->window * r->c->npeers;
    a->answer = r->pool.block > 0 ? coalesce(r, blocks + ticket, message) : *message;
    a->way = way_of_answer(c, message->nbytes);
    a->moved = 0;
    return send_or_wait(c, OUT_ANSWER, (uint32_t)ticket - c->base);
}

static const char *last_error(void *self)
{
    return ((rdma *)self)->error;
}

static uint64_t copied(void *self)
{
    return ((rdma *)self)->copied;
}

static const cb_channel_ops rdma_ops = {
    .abi_version = COMMBENCH_ABI_VERSION, .struct_size = sizeof(cb_channel_ops),
    .prepare = prepare, .finish = finish, .post = post, .poll = poll_done, .exchange = exchange,
    .accept = accept_some, .answer = answer, .progress = progress, .last_error = last_error,
    .copied = copied,
};

cb_rdma *cb_rdma_open(const cb_rdma_options *options, char error[256], int *code)
{
    rdma *r = calloc(1, sizeof *r);
    int rc = r ? 0 : -ENOMEM;
    if (r) {
        r->engine = (cb_engine){COMMBENCH_ABI_VERSION, sizeof r->engine, &rdma_ops, r};
        r->o = *options;
        r->o.device = r->name;
        rc = open_device(r, options->device);
    }
    if (rc == 0)
        return r;
    snprintf(error, 256, "%s", r ? r->error : "out of memory");
    *code = -rc;
    if (r)
        cb_rdma_free(r);
    return NULL;
}
