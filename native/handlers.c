/* Handlers that every build has: what a server of latency and of bandwidth does. */
#include "engines.h"

#include <errno.h>
#include <stddef.h>

static int echo(void *ctx, const cb_incoming *in, cb_iov *answer)
{
    (void)ctx;
    *answer = in->message;
    return CB_ANSWER;
}

static int sink(void *ctx, const cb_incoming *in, cb_iov *answer)
{
    (void)ctx;
    (void)in;
    *answer = (cb_iov){NULL, 0, 0};
    return CB_ANSWER;
}

/* Keeps CB_REVERSE_DEPTH requests, then hands out their answers last first: answers that are
 * deferred and out of order, for the contract test. */
static int keep(void *ctx, const cb_incoming *in, cb_iov *answer)
{
    cb_reverse_state *r = ctx;
    (void)answer;
    if (r->count == CB_REVERSE_DEPTH)
        return -ENOBUFS;
    r->kept[r->count++] = *in;
    r->ready = r->count == CB_REVERSE_DEPTH;
    return CB_DEFER;
}

static int hand_out(void *ctx, uint64_t *ticket, cb_iov *answer)
{
    cb_reverse_state *r = ctx;
    if (!r->ready)
        return 0;
    *ticket = r->kept[--r->count].ticket;
    *answer = r->kept[r->count].message;
    r->ready = r->count > 0;
    return 1;
}

static const cb_handler_ops reverse_ops = {COMMBENCH_ABI_VERSION, sizeof(cb_handler_ops), keep,
                                           hand_out};

cb_handler cb_reverse(cb_reverse_state *state)
{
    *state = (cb_reverse_state){0};
    return (cb_handler){&reverse_ops, state};
}

static const cb_handler_ops echo_ops = {COMMBENCH_ABI_VERSION, sizeof(cb_handler_ops), echo, NULL};
static const cb_handler_ops sink_ops = {COMMBENCH_ABI_VERSION, sizeof(cb_handler_ops), sink, NULL};
const cb_handler cb_echo = {&echo_ops, NULL}, cb_sink = {&sink_ops, NULL};
