/*
 * The loops: the only native code that reads the clock, here, in pipeline.c and in the loops of broker/.
 *
 * Three of them are written out for the shapes whose cost must equal a hand-written C loop:
 * ping-pong and one-way windows here, serve in serving.c. pipeline.c does everything else.
 */
#include "loops.h"

#include <stddef.h>
#include <time.h>

#define DAWDLE_NS INT64_C(50000000)

int64_t cb_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ------------------------------------------------------------------ one at a time */

static int verify_last_replies(cb_run *run, uint64_t replies)
{
    uint64_t slots = replies < run->c->nreply ? replies : run->c->nreply;
    if (!(run->flags & CB_VERIFY_LAST) || (run->reply_nbytes == 0 && run->ncalls == 0))
        return 0;
    for (uint64_t i = replies - slots; i < replies; i++) {
        int rc = check_reply(run, -1, reply_slot(run, i), reply_length(run, request_slot(run, i)),
                             run->number, i / run->ntargets);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* In pieces, so that the stop flag is seen. */
static int dawdle(cb_run *run, int64_t spent_ns)
{
    int64_t until = cb_now_ns() + dawdle_ns(run, spent_ns), left;
    while ((left = until - cb_now_ns()) > 0) {
        if (__atomic_load_n(run->c->stop, __ATOMIC_RELAXED))
            return fail(run, -ECANCELED, -1, "the run was stopped");
        left = left < DAWDLE_NS ? left : DAWDLE_NS;
        nanosleep(&(struct timespec){0, left}, NULL);
    }
    return 0;
}

static int pingpong(cb_run *run)
{
    const cb_channel_ops *ops = run->engine->ops;
    void *self = run->engine->self;
    bool every = run->flags & CB_VERIFY_EVERY;

    for (uint64_t i = 0; i < run->count; i++) {
        int32_t peer = run->targets[i % run->ntargets];
        const cb_iov *request = request_slot(run, i), *reply = reply_slot(run, i);
        uint64_t number = run->number + i / run->ntargets, got = 0;
        if (every)
            fill_request(run, request, number, call_of(run, i / run->ntargets));
        run->start[i] = cb_now_ns();
        int rc = ops->exchange(self, peer, request, reply, &got, run->timeout_ns);
        run->end[i] = cb_now_ns();
        if (rc < 0)
            return rc == -ETIMEDOUT ? late(run, peer, "reply") : engine_failed(run, rc, peer);
        if ((rc = check_length(run, peer, got, reply_length(run, request), "reply")) < 0)
            return rc;
        if (every && got && (rc = check_reply(run, peer, reply, got, number, i / run->ntargets)) < 0)
            return rc;
        run->done++;
        run->messages++;
        if (run->stretch > 1 && (rc = dawdle(run, run->end[i] - run->start[i])) < 0)
            return rc;
    }
    return verify_last_replies(run, run->count);
}

/* ------------------------------------------------------------------ window by window */

/* Only a ticket with the reply bit set brings a reply; its length is then known. */
#define REPLY_BIT (UINT64_C(1) << 63)

static int reap_window(cb_run *run, int32_t peer, uint32_t *left)
{
    cb_done done[ACCEPT_MAX];
    int n = run->engine->ops->poll(run->engine->self, done, ACCEPT_MAX, run->timeout_ns);
    if (n <= 0)
        return n == 0 ? late(run, peer, "completion") : engine_failed(run, n, peer);
    for (int i = 0; i < n; i++)
        if (done[i].ticket & REPLY_BIT) {
            int rc = check_length(run, peer, done[i].reply_nbytes, run->reply_nbytes, "reply");
            if (rc < 0)
                return rc;
        }
    *left -= (uint32_t)n;
    return 0;
}

static int one_window(cb_run *run, int32_t peer)
{
    const cb_channel_ops *ops = run->engine->ops;
    void *self = run->engine->self;
    const cb_case *c = run->c;
    uint32_t posted = 0, left = run->batch, request = 0;

    while (left > 0) {
        for (; posted < run->batch; posted++) {
            bool replied = c->reply_every == 1 || posted == run->batch - 1;
            int rc = ops->post(self, peer, replied ? posted | REPLY_BIT : posted,
                               &c->request[request],
                               replied ? &c->reply[posted % c->nreply] : NULL);
            if (rc == -EAGAIN)
                break;
            if (rc < 0)
                return engine_failed(run, rc, peer);
            if (++request == c->nrequest)
                request = 0;
        }
        int rc = reap_window(run, peer, &left);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int windows(cb_run *run)
{
    int32_t peer = run->targets[0];

    for (uint64_t i = 0; i < run->count; i++) {
        if (run->flags & CB_VERIFY_EVERY)
            for (uint32_t j = 0; j < run->batch; j++)
                cb_fill(request_slot(run, j), run->seed, run->rank,
                        run->number + i * run->batch + j);
        run->start[i] = cb_now_ns();
        int rc = one_window(run, peer);
        run->end[i] = cb_now_ns();
        if (rc < 0)
            return rc;
        run->done++;
        run->messages += run->batch;
    }
    return verify_last_replies(run, run->count * run->batch);
}

/* ------------------------------------------------------------------ the door */

static int check_run(cb_run *run, cb_loop_kind kind)
{
    bool asks = kind != CB_LOOP_SERVE && run->count > 0;
    if (run->abi_version != COMMBENCH_ABI_VERSION || run->struct_size < sizeof *run ||
        run->engine->abi_version != COMMBENCH_ABI_VERSION ||
        run->engine->ops->struct_size < offsetof(cb_channel_ops, copied))
        return fail(run, -EPROTO, -1, "the engine was built for another version of the ABI");
    if (asks && (run->ntargets == 0 || run->c->nrequest == 0 || run->c->nreply == 0 ||
                 run->batch == 0 || run->batch > run->c->window))
        return fail(run, -EINVAL, -1, "targets, slots and batch do not fit");
    if (run->serve > 0 && !run->handler)
        return fail(run, -EINVAL, -1, "serving needs a handler");
    if (run->parameters && (run->ncalls == 0 || run->parameters->ncalls != run->ncalls))
        return fail(run, -EINVAL, -1, "parameters need a call for each of their messages");
    return 0;
}

int cb_loop(cb_loop_kind kind, cb_run *run)
{
    run->done = run->served = run->messages = run->validated = 0;
    run->peer = -1;
    run->message[0] = '\0';
    int rc = check_run(run, kind);
    if (rc < 0)
        return rc;
    if (kind == CB_LOOP_SERVE)
        rc = cb_serve(run);
    else if (kind == CB_LOOP_WINDOWED)
        rc = windows(run);
    else if (kind == CB_LOOP_CLOSED && run->c->window == 1)
        rc = pingpong(run);
    else
        rc = cb_pipelined(run, kind == CB_LOOP_OPEN);
    return rc < 0 ? rc : 0;
}
