/* Several requests in flight, several targets, open loop, and asking while serving. */
#include "loops.h"

#include <stdlib.h>

#define SPIN_NS 100000          /* an open loop does not sleep closer than this to its next send */

typedef struct target {
    uint64_t ops, done_ops;     /* operations of this target: begun, finished */
    uint64_t total;             /* operations it will get */
    uint64_t number;            /* of its next message */
    uint32_t posted;            /* messages of the operation being posted */
    uint32_t left;              /* messages of the operations in flight that are not done */
    uint32_t *free, nfree;      /* its slots that are not in flight */
    int64_t ready_ns;           /* a straggler's next call is not before */
} target;

typedef struct flight {         /* by slot */
    uint64_t op, number, message;   /* message: its request and reply slot in the case */
    bool replied, used;
} flight;

typedef struct pipeline {
    target *t;
    flight *f;
    uint32_t *free;
    uint64_t finished;
    int64_t origin;             /* what intended[] is relative to in an open loop */
    bool open;
} pipeline;

static int pipeline_init(cb_run *run, pipeline *p, bool open)
{
    uint32_t w = run->c->window, n = run->ntargets;
    *p = (pipeline){.open = open};
    p->t = calloc(n + 1, sizeof *p->t);
    p->f = calloc((size_t)w * n + 1, sizeof *p->f);
    p->free = calloc((size_t)w * n + 1, sizeof *p->free);
    if (!p->t || !p->f || !p->free)
        return fail(run, -ENOMEM, -1, "out of memory");
    for (uint32_t i = 0; i < n; i++) {
        target *t = &p->t[i];
        *t = (target){.total = run->count / n + (i < run->count % n), .number = run->number,
                      .free = p->free + (size_t)i * w};
        for (uint32_t j = 0; j < w; j++)    /* a stack whose top is slot 0 */
            t->free[t->nfree++] = i * w + (w - 1 - j);
    }
    return 0;
}

static void pipeline_free(pipeline *p)
{
    free(p->t);
    free(p->f);
    free(p->free);
}

/* Calls that differ have slots of their own, and one in flight for each target. */
static uint64_t slot_of(const cb_run *run, const target *t, uint32_t i, uint32_t free_slot)
{
    return run->ncalls ? t->ops * run->ntargets + i : free_slot;
}

/* May the next message of this target go out now? Stamps an operation's start. */
static bool may_post(cb_run *run, pipeline *p, uint32_t i)
{
    target *t = &p->t[i];
    uint64_t op = t->ops * run->ntargets + i;
    if (t->nfree == 0)
        return false;
    if (t->posted > 0)
        return true;
    if (t->ops == t->total || (run->batch > 1 && t->left > 0))
        return false;
    if (p->open && cb_now_ns() - p->origin < run->intended[op])
        return false;
    if (t->ready_ns && cb_now_ns() < t->ready_ns)
        return false;
    if (run->flags & CB_VERIFY_EVERY)
        for (uint32_t j = 0; j < run->batch; j++)
            fill_request(run, request_slot(run, slot_of(run, t, i, t->free[t->nfree - 1 - j])),
                         t->number + j, call_of(run, t->ops));
    run->start[op] = cb_now_ns();
    return true;
}

static int post_one(cb_run *run, pipeline *p, uint32_t i)
{
    target *t = &p->t[i];
    uint32_t slot = t->free[t->nfree - 1];
    bool replied = run->c->reply_every == 1 ||
                   (run->c->reply_every > 1 && t->posted == run->batch - 1);
    uint64_t message = slot_of(run, t, i, slot);
    int rc = run->engine->ops->post(run->engine->self, run->targets[i], slot,
                                    request_slot(run, message),
                                    replied ? reply_slot(run, message) : NULL);
    if (rc < 0)
        return rc;
    p->f[slot] = (flight){t->ops * run->ntargets + i, t->number++, message, replied, true};
    t->nfree--;
    t->left++;
    if (++t->posted == run->batch) {
        t->posted = 0;
        t->ops++;
    }
    return 0;
}

static int post_all(cb_run *run, pipeline *p)
{
    for (uint32_t i = 0; i < run->ntargets; i++)
        while (may_post(run, p, i)) {
            int rc = post_one(run, p, i);
            if (rc == -EAGAIN)
                break;
            if (rc < 0)
                return engine_failed(run, rc, run->targets[i]);
        }
    return 0;
}

static int complete(cb_run *run, pipeline *p, const cb_done *d, int64_t now)
{
    uint32_t slot = (uint32_t)d->ticket, i = slot / run->c->window;
    flight *f = &p->f[slot];
    target *t = &p->t[i];
    run->end[f->op] = now;      /* the last message of an operation overwrites the others */
    t->free[t->nfree++] = slot;
    t->left--;
    run->messages++;
    if (run->stretch > 1)
        t->ready_ns = now + dawdle_ns(run, now - run->start[f->op]);
    if (run->batch == 1 || (t->left == 0 && t->posted == 0)) {
        t->done_ops++;
        run->done++;
    }
    if (!f->replied)
        return 0;
    uint64_t wanted = reply_length(run, request_slot(run, f->message));
    int rc = check_length(run, run->targets[i], d->reply_nbytes, wanted, "reply");
    if (rc == 0 && (run->flags & CB_VERIFY_EVERY) && d->reply_nbytes)
        rc = check_reply(run, run->targets[i], reply_slot(run, f->message), d->reply_nbytes,
                         f->number, f->op / run->ntargets);
    return rc;
}

/* Returns how many completed, or < 0. */
static int reap(cb_run *run, pipeline *p, int64_t timeout_ns)
{
    cb_done done[ACCEPT_MAX];
    int n = run->engine->ops->poll(run->engine->self, done, ACCEPT_MAX, timeout_ns);
    if (n < 0)
        return engine_failed(run, n, -1);
    int64_t now = n > 0 ? cb_now_ns() : 0;
    for (int i = 0; i < n; i++) {
        if (done[i].ticket >= (uint64_t)run->c->window * run->ntargets)
            return fail(run, -EPROTO, -1, "the engine completed a ticket that was not posted");
        int rc = complete(run, p, &done[i], now);
        if (rc < 0)
            return rc;
    }
    return n;
}

/* Up to the next call that a straggler holds back. */
static int64_t patience_of_straggler(cb_run *run, pipeline *p)
{
    int64_t wait = run->timeout_ns, now = cb_now_ns();
    for (uint32_t i = 0; i < run->ntargets; i++) {
        target *t = &p->t[i];
        if (t->ops < t->total && t->nfree > 0 && t->ready_ns - now < wait)
            wait = t->ready_ns > now ? t->ready_ns - now : 0;
    }
    return wait;
}

/* How long the next wait may be: up to the next intended send of an open loop. */
static int64_t patience(cb_run *run, pipeline *p)
{
    int64_t wait = run->timeout_ns, now;
    if (run->stretch > 1)
        return patience_of_straggler(run, p);
    if (!p->open)
        return wait;
    now = cb_now_ns() - p->origin;
    for (uint32_t i = 0; i < run->ntargets; i++) {
        target *t = &p->t[i];
        if (t->ops == t->total || t->nfree == 0)
            continue;
        int64_t until = run->intended[t->ops * run->ntargets + i] - now;
        if (until < wait)
            wait = until;
    }
    return wait > SPIN_NS ? wait - SPIN_NS : 0;
}

/* One turn; returns how much happened, or < 0. */
static int turn(cb_run *run, pipeline *p, server *s)
{
    bool asking = run->done < run->count, serving = run->served < run->serve || s->deferred > 0;
    int64_t wait = patience(run, p);
    int n = 0, rc = asking ? post_all(run, p) : 0;
    if (rc < 0)
        return rc;
    if (asking && serving) {
        rc = run->engine->ops->progress(run->engine->self, wait);
        if (rc <= 0)
            return rc < 0 ? engine_failed(run, rc, -1) : 0;
        wait = 0;
    }
    if (asking && (n = reap(run, p, wait)) < 0)
        return n;
    if (serving && (rc = run->served < run->serve ? cb_serve_some(run, s, wait)
                                                  : cb_serve_deferred(run, s)) < 0)
        return rc;
    return n + rc;
}

/* Of calls that differ the replies of the last step. */
static int verify_last_step(cb_run *run)
{
    uint64_t last = (uint64_t)run->ncalls * run->ntargets;
    int rc = 0;
    for (uint64_t op = run->count - (run->count < last ? run->count : last);
         rc == 0 && op < run->count; op++)
        rc = check_reply(run, run->targets[op % run->ntargets], reply_slot(run, op),
                         request_slot(run, op)->nbytes, run->number, op / run->ntargets);
    return rc;
}

static int verify_used_replies(cb_run *run, pipeline *p)
{
    if (!(run->flags & CB_VERIFY_LAST))
        return 0;
    if (run->ncalls)
        return verify_last_step(run);
    if (run->reply_nbytes == 0)
        return 0;
    for (uint32_t slot = 0; slot < run->c->window * run->ntargets; slot++) {
        int rc = p->f[slot].used && p->f[slot].replied
                     ? check_reply(run, -1, reply_slot(run, slot), run->reply_nbytes,
                                   run->number, 0)
                     : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

int cb_pipelined(cb_run *run, bool open)
{
    pipeline p = {0};
    server s = {0};
    int rc = pipeline_init(run, &p, open);
    if (rc == 0 && run->serve > 0)
        rc = cb_server_init(run, &s);
    p.origin = cb_now_ns();
    int64_t quiet_since = p.origin;
    while (rc >= 0 && (run->done < run->count || run->served < run->serve || s.deferred > 0)) {
        rc = turn(run, &p, &s);
        if (rc > 0 || ((open || run->stretch > 1) && patience(run, &p) < run->timeout_ns))
            quiet_since = cb_now_ns();
        else if (rc == 0 && cb_now_ns() - quiet_since > run->timeout_ns)
            rc = late(run, -1, "progress");
    }
    if (open)                   /* from relative to absolute, as all stamps are */
        for (uint64_t i = 0; i < run->count; i++)
            run->intended[i] += p.origin;
    if (rc >= 0)
        rc = verify_used_replies(run, &p);
    if (rc >= 0)
        rc = cb_verify_last_requests(run, &s);
    cb_server_free(&s);
    pipeline_free(&p);
    return rc;
}
