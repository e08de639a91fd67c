/*
 * Loopback: one process asks itself, over two memcpys and no transport. It is the floor of the
 * harness and the engine that the loops are tested with; `fault` damages one message on purpose,
 * so that validation can be seen to fail.
 */
#include "engines.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum fault { FAULT_NONE, FAULT_FLIP, FAULT_SWAP, FAULT_SHORT, FAULT_FEW, FAULT_REPEAT };

typedef struct parcel {         /* one message on its way; its index is the server's ticket */
    uint64_t ticket;
    const cb_iov *reply;
    struct iovec *iov;          /* what was delivered, where a fault shortened it */
    cb_incoming in;
} parcel;

typedef struct ring {           /* of parcel indices or finished operations; never overfull */
    uint32_t *at;
    uint32_t head, count;
} ring;

typedef struct loopback {
    cb_engine engine;
    enum fault fault;
    uint64_t fault_at, posted;
    const cb_case *c;
    uint32_t size;              /* parcels */
    parcel *parcels;
    ring idle, arrived, done;
    uint64_t *reply_nbytes;     /* by parcel */
    uint64_t copied;            /* payload bytes, in all */
    const char *error;
} loopback;

static void push(ring *r, uint32_t size, uint32_t value)
{
    r->at[(r->head + r->count++) % size] = value;
}

static uint32_t pop(ring *r, uint32_t size)
{
    uint32_t value = r->at[r->head];
    r->head = (r->head + 1) % size;
    r->count--;
    return value;
}

static int refuse(loopback *l, int code, const char *why)
{
    l->error = why;
    return code;
}

static int finish(void *self)
{
    loopback *l = self;
    for (uint32_t i = 0; l->parcels && i < l->size; i++)
        free(l->parcels[i].iov);
    free(l->parcels);
    free(l->idle.at);
    free(l->arrived.at);
    free(l->done.at);
    free(l->reply_nbytes);
    l->parcels = NULL;
    l->idle = l->arrived = l->done = (ring){0};
    l->reply_nbytes = NULL;
    return 0;
}

static int prepare(void *self, const cb_case *c)
{
    loopback *l = self;
    finish(l);
    if (c->struct_size < sizeof *c)
        return refuse(l, -EPROTO, "the case was made for an older version of the ABI");
    l->c = c;
    l->size = c->window * c->npeers;
    if (l->size == 0 || c->nincoming < l->size)
        return refuse(l, -EINVAL, "loopback needs an incoming slot for each message in flight");
    l->parcels = calloc(l->size, sizeof *l->parcels);
    l->idle.at = calloc(l->size, sizeof(uint32_t));
    l->arrived.at = calloc(l->size, sizeof(uint32_t));
    l->done.at = calloc(l->size, sizeof(uint32_t));
    l->reply_nbytes = calloc(l->size, sizeof *l->reply_nbytes);
    if (!l->parcels || !l->idle.at || !l->arrived.at || !l->done.at || !l->reply_nbytes)
        return refuse(l, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < l->size; i++) {
        l->parcels[i].iov = calloc(c->incoming[i].n + 1, sizeof(struct iovec));
        if (!l->parcels[i].iov)
            return refuse(l, -ENOMEM, "out of memory");
        push(&l->idle, l->size, i);
    }
    return 0;
}

/* Copies `from` into the memory of `to`, buffer by buffer when the layouts agree. */
static uint64_t copy(loopback *l, const cb_iov *to, const cb_iov *from)
{
    uint32_t t = 0, f = 0;
    size_t t_at = 0, f_at = 0;
    uint64_t copied = 0;
    while (t < to->n && f < from->n) {
        size_t room = to->iov[t].iov_len - t_at, have = from->iov[f].iov_len - f_at;
        size_t part = room < have ? room : have;
        if (part > 0)
            memcpy((char *)to->iov[t].iov_base + t_at, (char *)from->iov[f].iov_base + f_at, part);
        copied += part;
        t_at += part;
        f_at += part;
        if (t_at == to->iov[t].iov_len) {
            t++;
            t_at = 0;
        }
        if (f_at == from->iov[f].iov_len) {
            f++;
            f_at = 0;
        }
    }
    l->copied += copied;
    return copied;
}

static void swap_buffers(const cb_iov *m)
{
    if (m->n < 2)
        return;
    size_t part = m->iov[0].iov_len < m->iov[1].iov_len ? m->iov[0].iov_len : m->iov[1].iov_len;
    char *a = m->iov[0].iov_base, *b = m->iov[1].iov_base;
    for (size_t i = 0; i < part; i++) {
        char t = a[i];
        a[i] = b[i];
        b[i] = t;
    }
}

/* The first nbytes of the slot are the message. */
static void cut(parcel *p, uint64_t nbytes)
{
    cb_iov *m = &p->in.message;
    uint64_t rest = nbytes;
    for (uint32_t i = 0; i < m->n; i++) {
        p->iov[i] = m->iov[i];
        if (p->iov[i].iov_len > rest)
            p->iov[i].iov_len = rest;
        rest -= p->iov[i].iov_len;
    }
    m->iov = p->iov;
    m->nbytes = nbytes;
}

/* Fills the slot; the fault strikes here, as a broken transport's would. */
static void deliver(loopback *l, parcel *p, const cb_iov *slot, const cb_iov *request)
{
    bool struck = l->fault != FAULT_NONE && l->posted == l->fault_at;
    p->in.message = *slot;
    if (struck && l->fault == FAULT_REPEAT)
        return;
    if (copy(l, slot, request) < slot->nbytes)
        cut(p, request->nbytes);
    if (!struck)
        return;
    if (l->fault == FAULT_FLIP && slot->nbytes > 0)
        *(char *)slot->iov[slot->n - 1].iov_base ^= 0x10;
    else if (l->fault == FAULT_SWAP)
        swap_buffers(slot);
    else if (l->fault == FAULT_SHORT && slot->nbytes > 0)
        cut(p, p->in.message.nbytes - 1);
    else if (l->fault == FAULT_FEW && slot->n > 0)
        cut(p, p->in.message.nbytes - slot->iov[slot->n - 1].iov_len);
}

static int post(void *self, int32_t peer, uint64_t ticket, const cb_iov *request,
                const cb_iov *reply)
{
    loopback *l = self;
    if (l->idle.count == 0)
        return -EAGAIN;
    uint32_t i = pop(&l->idle, l->size);
    parcel *p = &l->parcels[i];
    p->ticket = ticket;
    p->reply = reply;
    p->in.ticket = i;
    p->in.peer = peer;
    p->in.wants_reply = reply != NULL;
    deliver(l, p, &l->c->incoming[i], request);
    l->posted++;
    l->reply_nbytes[i] = 0;
    push(&l->arrived, l->size, i);
    return 0;
}

static int poll_done(void *self, cb_done *done, uint32_t max, int64_t timeout_ns)
{
    loopback *l = self;
    uint32_t n = 0;
    (void)timeout_ns;           /* nobody else can make progress: waiting would be for ever */
    for (; n < max && l->done.count > 0; n++) {
        uint32_t i = pop(&l->done, l->size);
        done[n] = (cb_done){l->parcels[i].ticket, l->reply_nbytes[i]};
        push(&l->idle, l->size, i);
    }
    return (int)n;
}

static int accept_some(void *self, cb_incoming *in, uint32_t max, int64_t timeout_ns)
{
    loopback *l = self;
    uint32_t n = 0;
    (void)timeout_ns;
    if (__atomic_load_n(l->c->stop, __ATOMIC_RELAXED))
        return refuse(l, -ECANCELED, "stopped");
    for (; n < max && l->arrived.count > 0; n++) {
        uint32_t i = pop(&l->arrived, l->size);
        in[n] = l->parcels[i].in;
        if (!in[n].wants_reply)
            push(&l->done, l->size, i);
    }
    return (int)n;
}

static int answer(void *self, uint64_t ticket, const cb_iov *answer)
{
    loopback *l = self;
    if (ticket >= l->size || !l->parcels[ticket].reply)
        return refuse(l, -EINVAL, "no such ticket to answer");
    if (answer->nbytes > l->parcels[ticket].reply->nbytes)
        return refuse(l, -EMSGSIZE, "an answer is larger than the reply slot");
    l->reply_nbytes[ticket] = copy(l, l->parcels[ticket].reply, answer);
    l->parcels[ticket].reply = NULL;
    push(&l->done, l->size, (uint32_t)ticket);
    return 0;
}

static int exchange(void *self, int32_t peer, const cb_iov *request, const cb_iov *reply,
                    uint64_t *reply_nbytes, int64_t timeout_ns)
{
    (void)peer, (void)request, (void)reply, (void)reply_nbytes, (void)timeout_ns;
    return refuse(self, -ENOTSUP, "loopback serves itself: use the ask-and-serve loop");
}

static int progress(void *self, int64_t timeout_ns)
{
    loopback *l = self;
    (void)timeout_ns;
    return (l->done.count ? CB_COMPLETED : 0) | (l->arrived.count ? CB_ARRIVED : 0);
}

static const char *last_error(void *self)
{
    return ((loopback *)self)->error;
}

static uint64_t copied_so_far(void *self)
{
    return ((loopback *)self)->copied;
}

static const cb_channel_ops loopback_ops = {
    .abi_version = COMMBENCH_ABI_VERSION, .struct_size = sizeof(cb_channel_ops),
    .prepare = prepare, .finish = finish, .post = post, .poll = poll_done, .exchange = exchange,
    .accept = accept_some, .answer = answer, .progress = progress, .last_error = last_error,
    .copied = copied_so_far,
};

static enum fault fault_named(const char *name)
{
    static const char *const names[] = {"", "flip", "swap", "short", "few", "repeat"};
    for (int i = FAULT_FLIP; i <= FAULT_REPEAT; i++)
        if (strcmp(name, names[i]) == 0)
            return (enum fault)i;
    return FAULT_NONE;
}

cb_engine *cb_loopback_open(const char *fault, uint64_t fault_at)
{
    loopback *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->engine = (cb_engine){COMMBENCH_ABI_VERSION, sizeof(cb_engine), &loopback_ops, l};
    l->fault = fault_named(fault);
    l->fault_at = fault_at;
    l->error = "no error";
    return &l->engine;
}

void cb_loopback_close(cb_engine *engine)
{
    finish(engine->self);
    free(engine->self);
}
