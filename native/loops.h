/* What the parts of the loops share: errors and checks, inlined into each, and the server. */
#ifndef COMMBENCH_LOOPS_H
#define COMMBENCH_LOOPS_H

#include "commbench_ops.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>

#define ACCEPT_MAX 16

static inline int fail(cb_run *run, int code, int32_t peer, const char *what)
{
    run->peer = peer;
    snprintf(run->message, sizeof run->message, "%s", what);
    return code;
}

static inline int engine_failed(cb_run *run, int code, int32_t peer)
{
    return fail(run, code, peer, run->engine->ops->last_error(run->engine->self));
}

static inline int late(cb_run *run, int32_t peer, const char *what)
{
    char line[160];
    snprintf(line, sizeof line, "no %s within %g s", what, (double)run->timeout_ns / 1e9);
    return fail(run, -ETIMEDOUT, peer, line);
}

static inline int check_length(cb_run *run, int32_t peer, uint64_t got, uint64_t want,
                               const char *what)
{
    char line[160];
    if (__builtin_expect(got == want, 1))
        return 0;
    snprintf(line, sizeof line, "a %s has %llu bytes instead of %llu", what,
             (unsigned long long)got, (unsigned long long)want);
    return fail(run, -EBADMSG, peer, line);
}

/* Which of the calls of a step the k-th message to or from a peer is. */
static inline uint32_t call_of(const cb_run *run, uint64_t k)
{
    return run->ncalls ? (uint32_t)(k % run->ncalls) : 0;
}

static inline void fill_request(const cb_run *run, const cb_iov *message, uint64_t number,
                                uint32_t call)
{
    if (run->parameters)
        cb_fill_gradients(message, run->seed, run->rank, number, call);
    else
        cb_fill(message, run->seed, run->rank, number);
}

static inline int verify(const cb_run *run, const cb_iov *message, int32_t sender, uint64_t number,
                         uint32_t call, uint32_t *buffer, uint64_t *offset)
{
    return run->parameters
               ? cb_verify_gradients(message, run->seed, sender, number, call, buffer, offset)
               : cb_verify(message, run->seed, sender, number, buffer, offset);
}

static inline int check_content(cb_run *run, int32_t peer, const cb_iov *message, int32_t sender,
                                uint64_t number, uint32_t call, const char *what)
{
    char line[160];
    uint32_t buffer;
    uint64_t offset;
    if (verify(run, message, sender, number, call, &buffer, &offset) == 0) {
        run->validated++;
        return 0;
    }
    snprintf(line, sizeof line, "%s %llu of rank %d differs in buffer %u at byte %llu", what,
             (unsigned long long)number, (int)sender, buffer, (unsigned long long)offset);
    return fail(run, -EBADMSG, peer, line);
}

/* What `steps` steps of all workers made of the parameters of a call. While answers are not deferred
 * nobody but the server knows whose pushes an answer holds. */
static inline int check_pull(cb_run *run, int32_t peer, const cb_iov *weights, uint32_t call,
                             uint64_t steps)
{
    bool every = run->flags & CB_VERIFY_EVERY;
    float expected[CB_GRADIENT_CYCLE];
    char line[160];
    uint32_t buffer;
    uint64_t offset;
    if (!run->parameters->deferred)
        return 0;
    cb_weights_of(run->parameters, every ? run->number + call : run->number,
                  every ? run->ncalls : 0, steps, expected);
    if (cb_verify_floats(weights, run->seed, call, expected, &buffer, &offset) == 0) {
        run->validated++;
        return 0;
    }
    snprintf(line, sizeof line, "weights after step %llu of this block differ in tensor %u at byte "
             "%llu", (unsigned long long)steps, call + buffer, (unsigned long long)offset);
    return fail(run, -EBADMSG, peer, line);
}

/* A reply fills the first nbytes of its slot; it answers message k of this block to that peer. */
static inline int check_reply(cb_run *run, int32_t peer, const cb_iov *slot, uint64_t nbytes,
                              uint64_t number, uint64_t k)
{
    cb_iov reply = {slot->iov, slot->n, nbytes};
    if (run->parameters)
        return check_pull(run, peer, &reply, call_of(run, k), k / run->ncalls + 1);
    return check_content(run, peer, &reply, run->rank, number, 0, "reply");
}

/* Bytes that the answer to this request must have. */
static inline uint64_t reply_length(const cb_run *run, const cb_iov *request)
{
    return run->ncalls ? request->nbytes : run->reply_nbytes;
}

/* How long a straggler waits after a call. */
static inline int64_t dawdle_ns(const cb_run *run, int64_t spent_ns)
{
    return run->stretch > 1 ? (int64_t)((run->stretch - 1) * (double)spent_ns) : 0;
}

static inline const cb_iov *request_slot(const cb_run *run, uint64_t i)
{
    return &run->c->request[i % run->c->nrequest];
}

static inline const cb_iov *reply_slot(const cb_run *run, uint64_t i)
{
    return &run->c->reply[i % run->c->nreply];
}

/* ------------------------------------------------------------------ serving.c */

typedef struct server {
    uint64_t *expected;         /* by peer: the next `ahead` numbers that have not come yet */
    uint32_t ahead;             /* 1, or the window with CB_ANY_ORDER */
    int32_t npeers;             /* length of expected, in units of `ahead` */
    cb_incoming *last;          /* the last window, for CB_VERIFY_LAST */
    uint64_t keep;
    uint64_t deferred;
    uint64_t *calls;            /* by peer: how many messages have come, with run->ncalls */
} server;

int cb_server_init(cb_run *run, server *s);
void cb_server_free(server *s);
/* Accepts, checks and answers what has arrived; returns how many, or < 0. */
int cb_serve_some(cb_run *run, server *s, int64_t timeout_ns);
/* Answers the deferred requests that are ready. */
int cb_serve_deferred(cb_run *run, server *s);
int cb_verify_last_requests(cb_run *run, server *s);
/* CB_LOOP_SERVE */
int cb_serve(cb_run *run);

/* pipeline.c: several in flight, several targets, open loop, asking while serving */
int cb_pipelined(cb_run *run, bool open);

#endif
