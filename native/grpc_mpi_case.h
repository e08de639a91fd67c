/* prepare() and finish(). Part of grpc_mpi_engine.h. */

/* TensorFlow's: device of the owner, its incarnation, device of the rank that asks, edge, frame. The
 * incarnation is the number of the case: what would reach another one is seen. */
static void make_key(key *k, int32_t owner, int32_t asker, uint32_t meeting, const char *edge)
{
    k->nbytes = (uint32_t)snprintf(
        k->text, sizeof k->text, "/job:worker/replica:0/task:%d/device:CPU:0;%016x;"
        "/job:worker/replica:0/task:%d/device:CPU:0;%s;0:0", owner, meeting, asker, edge);
}

static void make_keys(engine *e, peer *p)
{
    uint32_t meeting = ++e->meetings[p->rank];
    make_key(&p->keys[OUR_REQUEST], e->rank, p->rank, meeting, "edge_request");
    make_key(&p->keys[OUR_REPLY], e->rank, p->rank, meeting, "edge_reply");
    make_key(&p->keys[THEIR_REQUEST], p->rank, e->rank, meeting, "edge_request");
    make_key(&p->keys[THEIR_REPLY], p->rank, e->rank, meeting, "edge_reply");
}

#include "tensor_case.h"

static bool make_rings(engine *e, uint32_t nlanes)
{
    ring *rings[] = {&e->calls, &e->responses, &e->done, &e->arrived, &e->loose};
    e->active = calloc(nlanes + 1, sizeof *e->active);
    for (size_t i = 0; i < sizeof rings / sizeof *rings; i++)
        if (!make_ring(rings[i], nlanes))
            return false;
    return e->active != NULL;
}

static void free_case(engine *e)
{
    ring *rings[] = {&e->calls, &e->responses, &e->done, &e->arrived, &e->loose};
    for (size_t i = 0; i < sizeof rings / sizeof *rings; i++)
        free_ring(rings[i]);
    for (uint32_t i = 0; e->all && i < 2 * e->c->npeers * e->lanes; i++)
        free(e->all[i].out.content);
    free_exchanges(e);
    free(e->active);
    e->active = NULL;
    e->nactive = 0;
    e->c = NULL;
}

/* Wait until the thread has parked, or the deadline, or the stop flag. With the lock. */
static bool wait_parked(engine *e, int64_t timeout_ns, bool heeds_stop)
{
    int64_t until = monotonic_ns() + timeout_ns, now;
    while (!e->parked && (now = monotonic_ns()) < until && !(heeds_stop && stopped(e)))
        wait_until(e, &e->news, until - now < LOOK_NS ? until : now + LOOK_NS);
    return e->parked;
}

/* Everything of ours is sent, then the thread sleeps. What a thread that is not done still uses stays
 * allocated until the process ends. */
static int finish(void *self)
{
    engine *e = self;
    if (!e->c)
        return 0;
    lock(e);
    __atomic_store_n(&e->closing, true, __ATOMIC_RELEASE);
    pthread_cond_signal(&e->work);
    bool clean = wait_parked(e, FINISH_NS, true) && e->failed == 0;
    __atomic_store_n(&e->running, false, __ATOMIC_RELEASE);
    bool parked = wait_parked(e, FINISH_NS, false);
    unlock(e);
    bool was_stopped = stopped(e);
    if (clean)
        free_case(e);
    e->c = NULL;
    if (clean || was_stopped || (parked && e->failed))
        return 0;
    return refuse(e, -ETIMEDOUT, parked ? "messages are still in flight, or a peer does not end"
                                        : "the progress thread hangs in MPI");
}

static void start_case(engine *e, const cb_case *c)
{
    lock(e);
    e->closing = e->parked = e->handed_over = false;
    e->failed = 0;
    e->nactive = 0;
    for (uint32_t i = 0; c->serves && i < c->npeers; i++)
        call_next(e, &e->peers[i]);
    __atomic_store_n(&e->running, true, __ATOMIC_RELEASE);
    pthread_cond_signal(&e->work);
    unlock(e);
}

static int prepare(void *self, const cb_case *c)
{
    engine *e = self;
    int rc = finish(e);
    if (rc == 0 && !e->parked)
        rc = refuse(e, -EBUSY, "the progress thread hangs in MPI");
    if (rc == 0)
        rc = check_case(e, c);
    if (rc < 0)
        return rc;
    e->c = c;
    e->lanes = lanes_for(c->window);
    e->all = calloc((size_t)2 * c->npeers * e->lanes + 1, sizeof *e->all);
    if (e->all && make_peers(e, c) && make_rings(e, 2 * c->npeers * e->lanes) && make_cuts(e, c)) {
        start_case(e, c);
        return 0;
    }
    free_case(e);
    return refuse(e, -ENOMEM, "out of memory");
}
