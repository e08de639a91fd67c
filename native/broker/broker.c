/*
 * A broker: takes requests up, appends to the logs that it leads, fetches for those that it follows, and
 * answers; in one thread, or with threads that handle requests (handlers.h). See broker.h, protocol.h.
 */
#include "broker.h"
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define ACCEPT_MAX 16
#define SPINS 2000                  /* looks in vain before others may have the processor */
#define LOOK_NS INT64_C(10000000)   /* how often a standstill is looked for */
#define GRACE_NS INT64_C(1000000000)
#define IDLE_NS INT64_C(200000000)  /* a wait that nothing limits: engines sleep best in long ones */

#include "state.h"

#include "answer.h"

#include "handlers.h"

#include "leader.h"

#include "threads.h"

#include "follower.h"

#include "memory.h"

/* ------------------------------------------------------------------ taking requests */

/* The slot that this message lies in. */
static uint32_t slot_of(const broker *b, const cb_incoming *in)
{
    const cb_case *c = b->run->c;
    const uint8_t *first = c->incoming[0].iov->iov_base;
    if (in->message.n == 0 || c->nincoming == 0)
        return NOBODY;
    const uint8_t *at = in->message.iov->iov_base;
    size_t span = c->nincoming > 1 ? (size_t)((const uint8_t *)c->incoming[1].iov->iov_base - first)
                                   : 1;
    size_t index = (size_t)(at - first) / span;
    bool ours = at >= first && index < c->nincoming && c->incoming[index].iov->iov_base == at;
    return ours ? (uint32_t)index : NOBODY;
}

/* Kafka's broker allocates memory for each request; ours does so on demand. */
static int own_memory(broker *b, taken *t)
{
    t->bytes = t->slot;
    if (b->run->design & CB_BUFFER_POOL)
        return 0;
    t->heap = malloc(t->nbytes + 1);
    if (!t->heap)
        return complain(b, -ENOMEM, t->peer, "out of memory for a request");
    memcpy(t->heap, t->slot, t->nbytes);
    t->bytes = t->heap;
    b->run->copied += t->nbytes;
    b->run->allocated++;
    return 0;
}

/* Too short to have a place in the order of its connection. */
static int answer_stray(broker *b, const cb_incoming *in)
{
    const cb_engine *e = b->run->engine;
    const broker_answer a = {-1, -1, BROKER_INVALID_REQUEST, 0, -1, -1};
    uint32_t nbytes = broker_put_answer(b->stray, &a, 0);
    b->run->refused++;
    int rc = e->ops->answer(e->self, in->ticket, cb_cut_of(&b->stray_cut, b->stray, nbytes));
    return rc < 0 ? engine_says(b, rc, in->peer) : 0;
}

/* Into the queue of its connection, by correlation. */
static int enqueue(broker *b, connection *n, uint32_t at)
{
    taken *t = &b->taken[at];
    uint32_t ahead = (uint32_t)t->r.correlation - n->expected, here = 0, *link = &n->queue;
    if (ahead >= b->run->c->window)
        return complain(b, -EPROTO, t->peer, "rank %d sent request %u where %u comes next", t->peer,
                        (uint32_t)t->r.correlation, n->expected);
    while (*link != NOBODY &&
           (uint32_t)b->taken[*link].r.correlation - n->expected < ahead) {
        link = &b->taken[*link].later;
        here++;
    }
    if (*link != NOBODY && b->taken[*link].r.correlation == t->r.correlation)
        return complain(b, -EPROTO, t->peer, "rank %d sent request %u twice", t->peer,
                        (uint32_t)t->r.correlation);
    t->later = *link;
    *link = at;
    b->run->overtook += here < ahead;
    return 0;
}

static int take(broker *b, const cb_incoming *in)
{
    if (in->peer < 0 || (uint32_t)in->peer >= b->nranks || b->conn_of[in->peer] == NOBODY)
        return complain(b, -EPROTO, in->peer, "a request of rank %d, which is no peer", in->peer);
    uint32_t at = slot_of(b, in);
    if (at == NOBODY || in->message.nbytes < BROKER_REQUEST || !in->wants_reply)
        return in->wants_reply ? answer_stray(b, in) : 0;
    taken *t = &b->taken[at];
    *t = (taken){.ticket = in->ticket, .peer = in->peer, .state = QUEUED,
                 .slot = in->message.iov->iov_base, .nbytes = in->message.nbytes, .next = NOBODY};
    int rc = own_memory(b, t);
    if (rc < 0)
        return rc;
    t->error = broker_read_request(t->bytes, t->nbytes, &t->r);
    if (++b->waiting > b->run->most_waiting)
        b->run->most_waiting = b->waiting;
    if (in->peer >= (int32_t)b->run->who.brokers)
        b->quiet_ns = b->now_ns;
    return enqueue(b, conn_of(b, in->peer), at);
}

/* Handle the requests of a connection whose turn it is. Returns how many, or < 0. */
static int take_up(broker *b, connection *n)
{
    int handled = 0;
    while (n->queue != NOBODY) {
        uint32_t at = n->queue;
        taken *t = &b->taken[at];
        bool produce = t->r.api == BROKER_PRODUCE;
        if ((uint32_t)t->r.correlation != n->expected)
            break;
        if (produce && n->unsent > 0 && !(b->run->design & CB_OVERLAPPED))
            break;
        n->unsent += produce;
        n->queue = t->later;
        n->expected++;
        t->later = NOBODY;
        if (produce && n->answers == NOBODY)
            n->answers = n->last = at;
        else if (produce)
            n->last = b->taken[n->last].later = at;
        int rc = dispatch(b, at);
        if (rc < 0)
            return rc;
        handled++;
    }
    return handled;
}

/* ------------------------------------------------------------------ the loop */

static bool is_done(const broker *b)
{
    if (b->clients_left > 0 || b->waiting > 0)
        return false;
    for (uint32_t i = 0; i < b->run->who.partitions; i++) {
        const partition *p = &b->parts[i];
        if (p->log && !p->leads && !p->done)
            return false;
    }
    for (uint32_t i = 0; i < b->nhandlers; i++)
        if (__atomic_load_n(&b->handlers[i].open, __ATOMIC_ACQUIRE) > 0)
            return false;
    return true;
}

static int look_at_leaders(broker *b)
{
    for (uint32_t i = 0; i < b->nfetchers; i++) {
        const fetcher *f = &b->fetchers[i];
        if (f->asking && b->now_ns - f->since_ns > b->run->timeout_ns + b->run->fetch_wait_ns)
            return complain(b, -ETIMEDOUT, f->leader, "leader rank %d has not answered a FETCH of "
                            "partition %u within %g s", f->leader, f->partition,
                            (double)b->run->timeout_ns / 1e9);
    }
    return 0;
}

static int look_for_a_standstill(broker *b)
{
    int rc = look_at_leaders(b);
    if (rc == 0 && !b->handlers->is_thread)
        rc = as_own(b, b->handlers, look_at_all_replicas(b->handlers));
    /* a handler that waits for a replica knows better what is missing, and says so in its time */
    int64_t grace = b->handlers->is_thread && b->waiting > 0 ? GRACE_NS : 0;
    if (rc == 0 && b->now_ns - b->quiet_ns > b->run->timeout_ns + grace)
        rc = complain(b, -ETIMEDOUT, -1, "no request of a producer or consumer within %g s",
                      (double)b->run->timeout_ns / 1e9);
    return rc;
}

static int accept_some(broker *b, int64_t wait_ns)
{
    const cb_engine *e = b->run->engine;
    cb_incoming in[ACCEPT_MAX];
    int n = e->ops->accept(e->self, in, ACCEPT_MAX, wait_ns), rc = 0;
    if (n < 0)
        return engine_says(b, n, -1);
    b->now_ns = cb_now_ns();
    for (int i = 0; rc >= 0 && i < n; i++)
        rc = take(b, &in[i]);
    return rc < 0 ? rc : n;
}

/* What was taken is handled, and what then may be taken up. */
static int work(broker *b)
{
    int more, rc = 0;
    do {
        more = 0;
        for (uint32_t i = 0; i < b->run->c->npeers; i++) {
            if (b->conns[i].queue == NOBODY)
                continue;
            if ((rc = take_up(b, &b->conns[i])) < 0)
                return rc;
            more += rc;
        }
        if ((rc = empty_channel_buffer(b)) < 0)
            return rc;
    } while (more > 0);
    return 0;
}

/* How long nothing has to be done unless something arrives. Who has handlers in threads polls. */
static int64_t patience(const broker *b)
{
    const handler *h = b->handlers;
    if (h->is_thread)
        return 0;
    int64_t wait = h->fetches_waiting ? h->next_due_ns - b->now_ns : IDLE_NS;
    return wait > 0 ? wait : 0;
}

/* Returns how much came, or < 0. */
static int turn(broker *b)
{
    const cb_engine *e = b->run->engine;
    handler *h = b->handlers;
    int64_t wait = patience(b);
    int rc = ask_leaders(b), finished = 0, arrived;
    if (rc < 0)
        return rc;
    if (!h->is_thread)
        enter(b, CB_IDLE);
    else if ((finished = take_finished(b)) < 0)
        return finished;
    if (b->nfetchers > 0) {
        rc = e->ops->progress(e->self, wait);
        if (rc < 0)
            return engine_says(b, rc, -1);
        b->now_ns = cb_now_ns();
        if ((rc & CB_COMPLETED) && (rc = take_answers(b)) < 0)
            return rc;
        wait = 0;
    }
    if ((arrived = accept_some(b, wait)) < 0 || (rc = work(b)) < 0)
        return arrived < 0 ? arrived : rc;
    if (h->is_thread)
        return arrived + finished;
    h->now_ns = b->now_ns;
    return (rc = as_own(b, h, end_waits(h))) < 0 ? rc : arrived;
}

static int serve(broker *b)
{
    cb_serve_run *run = b->run;
    memory m = {.count = 0};
    int rc = 0;
    uint32_t vain = 0;
    int64_t look_ns = b->now_ns;
    while (rc == 0 && !is_done(b)) {
        rc = turn(b);
        vain = rc == 0 ? vain + 1 : 0;
        if (b->handlers->is_thread && vain > SPINS)
            sched_yield();
        rc = rc < 0 ? rc : empty_channel_buffer(b);
        if (rc == 0 && b->now_ns - look_ns > LOOK_NS) {
            rc = look_for_a_standstill(b);
            look_ns = b->now_ns;
            sample_memory(&m, b->now_ns);
        }
    }
    run->rss_end = resident_bytes();
    run->rss_half = m.count ? m.at[m.count / 2] : run->rss_end;
    return rc;
}

int cb_broker_serve(cb_serve_run *run)
{
    broker b;
    int rc = begin(&b, run);
    if (rc == 0)
        rc = make_handlers(&b);
    if (rc == 0)
        rc = start_handlers(&b);
    if (rc == 0)
        rc = serve(&b);
    stop_handlers(&b);
    free(b.handlers);
    end(&b);
    return rc;
}
