/* prepare() and finish(). Part of engine.c. */

/* TensorFlow's: device of the owner, its incarnation, device of the rank that asks, edge. The
 * incarnation is the number of the case: what is left of another one is seen. The place in a step
 * follows: each tensor of a step has a name of its own, the same in every step. */
static void make_key(char to[TEXT], int32_t owner, int32_t asker, uint32_t meeting, const char *edge)
{
    snprintf(to, TEXT, "/job:worker/replica:0/task:%d/device:CPU:0;%016x;"
             "/job:worker/replica:0/task:%d/device:CPU:0;%s_", owner, meeting, asker, edge);
}

static void make_keys(engine *e, peer *p)
{
    p->meeting = ++e->meetings[p->rank];
    make_key(p->keys[OUR_REQUEST], e->rank, p->rank, p->meeting, "edge_request");
    make_key(p->keys[OUR_REPLY], e->rank, p->rank, p->meeting, "edge_reply");
    make_key(p->keys[THEIR_REQUEST], p->rank, e->rank, p->meeting, "edge_request");
    make_key(p->keys[THEIR_REPLY], p->rank, e->rank, p->meeting, "edge_reply");
    for (int asks = 0; asks < 2; asks++)
        p->known[asks] = e->known + ((size_t)(p - e->peers) * 2 + (size_t)asks) * e->step;
}

#include "../tensor_case.h"

static void free_case(engine *e)
{
    ring *rings[] = {&e->done, &e->arrived, &e->loose};
    for (size_t i = 0; i < sizeof rings / sizeof *rings; i++)
        free_ring(rings[i]);
    for (uint32_t i = 0; i < e->o.size; i++)
        e->conns[i].first = NULL, e->conns[i].content = NULL;
    free_buffers(e);
    release_slots(&e->regions);
    free_blocks(e);
    free_exchanges(e);
    free(e->known);
    e->known = NULL;
    e->c = NULL;
}

static bool quiet(const engine *e)
{
    for (uint32_t i = 0; i < 2 * e->c->npeers * e->lanes; i++)
        if (!e->all[i].asks && e->all[i].state == ANSWERING)
            return false;
    return e->flying == 0;
}

/* Everything of ours is sent. What the device may still use is left as it is. */
static int finish(void *self)
{
    engine *e = self;
    if (!e->c)
        return 0;
    lock(e);
    int64_t now, until = monotonic_ns() + FINISH_NS;
    e->closing = true;
    while (!quiet(e) && !e->failed && !stopped(e) && (now = monotonic_ns()) < until)
        wait_until(e, &e->news, now + LOOK_NS);
    bool sent = quiet(e);
    while (e->flying > 0 && (now = monotonic_ns()) < until)
        wait_until(e, &e->news, now + LOOK_NS);
    e->running = false;
    while (e->inside)
        pthread_cond_wait(&e->news, &e->lock);
    bool clean = e->flying == 0, excused = sent || e->failed || stopped(e);
    if (clean)
        free_case(e);
    e->c = NULL;
    unlock(e);
    return clean && excused ? 0 : refuse(e, -ETIMEDOUT, "messages are still in flight");
}

static void start_case(engine *e, const cb_case *c)
{
    lock(e);
    e->closing = false;
    for (uint32_t i = 0; c->serves && i < c->npeers; i++)
        call_next(e, &e->peers[i]);
    e->running = true;
    pthread_cond_broadcast(&e->work);
    unlock(e);
}

static bool allocate_case(engine *e, const cb_case *c)
{
    size_t places = (size_t)c->npeers * 2 * e->step, lanes = (size_t)2 * c->npeers * e->lanes;
    e->known = malloc((places + 1) * sizeof *e->known);
    e->all = calloc(lanes + 1, sizeof *e->all);
    if (!e->known || !e->all)
        return false;
    for (size_t i = 0; i < places; i++)
        e->known[i] = NO_METADATA;
    ring *rings[] = {&e->done, &e->arrived, &e->loose};
    for (size_t i = 0; i < sizeof rings / sizeof *rings; i++)
        if (!make_ring(rings[i], (uint32_t)lanes))
            return false;
    return make_peers(e, c) && make_cuts(e, c) && make_buffers(e);
}

static int check_conns(engine *e, const cb_case *c)
{
    for (uint32_t i = 0; i < c->npeers; i++) {
        const conn *n = (uint32_t)c->peers[i] < e->o.size ? &e->conns[c->peers[i]] : NULL;
        if (!n || !n->qp)
            return refuse(e, -EINVAL, "a peer of this case is no rank that we are connected to");
        if (n->lost)
            return refuse(e, -ECONNRESET, e->thread_error);
    }
    return 0;
}

static int prepare(void *self, const cb_case *c)
{
    engine *e = self;
    int rc = finish(e);
    if (rc == 0 && e->flying > 0)
        rc = refuse(e, -EBUSY, "messages of another case are still in flight");
    if (rc == 0)
        rc = check_case(e, c);
    if (rc == 0)
        rc = check_conns(e, c);
    if (rc < 0)
        return rc;
    e->c = c;
    e->failed = 0;
    e->lanes = lanes_for(c->window);
    e->step = c->window > c->ncalls ? c->window : c->ncalls;
    if (!allocate_case(e, c))
        rc = refuse(e, -ENOMEM, "out of memory");
    else if (e->o.protocol != CB_VERBS_V1 && (rc = register_slots(&e->regions, c)) < 0)
        forward(e, rc);
    if (rc == 0)
        start_case(e, c);
    else
        free_case(e);
    return rc;
}
