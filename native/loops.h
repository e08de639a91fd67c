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

static inline int check_content(cb_run *run, int32_t peer, const cb_iov *message, int32_t sender,
                                uint64_t number, const char *what)
{
    char line[160];
    uint32_t buffer;
    uint64_t offset;
    if (cb_verify(message, run->seed, sender, number, &buffer, &offset) == 0) {
        run->validated++;
        return 0;
    }
    snprintf(line, sizeof line, "%s %llu of rank %d differs in buffer %u at byte %llu", what,
             (unsigned long long)number, (int)sender, buffer, (unsigned long long)offset);
    return fail(run, -EBADMSG, peer, line);
}

/* A reply fills the first nbytes of its slot. */
static inline int check_reply(cb_run *run, int32_t peer, const cb_iov *slot, uint64_t nbytes,
                              uint64_t number)
{
    cb_iov reply = {slot->iov, slot->n, nbytes};
    return check_content(run, peer, &reply, run->rank, number, "reply");
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
