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

static uint32_t lanes_for(uint32_t window)
{
    uint32_t lanes = 1;
    while (window > 1 && lanes < 4 * window && lanes < MOST_LANES)
        lanes *= 2;
    return lanes;
}

static bool make_peer(engine *e, const cb_case *c, uint32_t at)
{
    peer *p = &e->peers[at];
    p->rank = c->peers[at];
    p->asks = e->all + (size_t)at * 2 * e->lanes;
    p->serves = p->asks + e->lanes;
    for (uint32_t i = 0; i < 2 * e->lanes; i++) {
        p->asks[i].peer = at;
        p->asks[i].asks = i < e->lanes;
    }
    e->index_of[p->rank] = (int32_t)at;
    make_keys(e, p);
    if (!c->serves)
        return true;
    p->free_slots = calloc(c->window, sizeof *p->free_slots);
    for (uint32_t i = 0; p->free_slots && i < c->window; i++)     /* a stack whose top is the first */
        p->free_slots[p->nfree++] = at * c->window + (c->window - 1 - i);
    return p->free_slots != NULL;
}

static bool make_peers(engine *e, const cb_case *c)
{
    e->nranks = 0;
    for (uint32_t i = 0; i < c->npeers; i++)
        if (c->peers[i] >= e->nranks)
            e->nranks = c->peers[i] + 1;
    e->index_of = malloc(((size_t)e->nranks + 1) * sizeof *e->index_of);
    e->peers = calloc(c->npeers + 1, sizeof *e->peers);
    if (!e->index_of || !e->peers)
        return false;
    memset(e->index_of, 0xff, (size_t)e->nranks * sizeof *e->index_of);
    while (e->nmeetings < (uint32_t)e->nranks) {
        uint32_t *more = realloc(e->meetings, (e->nmeetings + 1) * sizeof *more);
        if (!more)
            return false;
        e->meetings = more;
        e->meetings[e->nmeetings++] = 0;
    }
    for (uint32_t i = 0; i < c->npeers; i++)
        if (!make_peer(e, c, i))
            return false;
    return true;
}

static bool make_rings(engine *e, uint32_t nlanes)
{
    ring *rings[] = {&e->calls, &e->responses, &e->done, &e->arrived, &e->loose};
    e->active = calloc(nlanes + 1, sizeof *e->active);
    for (size_t i = 0; i < sizeof rings / sizeof *rings; i++) {
        *rings[i] = (ring){calloc(nlanes + 1, sizeof(lane *)), nlanes, 0, 0};
        if (!rings[i]->at)
            return false;
    }
    return e->active != NULL;
}

static bool make_cuts(engine *e, const cb_case *c)
{
    e->ncut = c->serves ? c->npeers * c->window : 0;
    e->cut = calloc(e->ncut + 1, sizeof *e->cut);
    for (uint32_t i = 0; e->cut && i < e->ncut; i++)
        if (!(e->cut[i] = calloc(c->incoming[i].n + 1, sizeof **e->cut)))
            return false;
    return e->cut != NULL;
}

static int check_sizes(engine *e, const cb_iov *slots, uint32_t n, uint64_t *largest)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        rc = check_size(e, slots[i].nbytes);
        if (slots[i].nbytes > *largest)
            *largest = slots[i].nbytes;
    }
    return rc;
}

static int check_case(engine *e, const cb_case *c)
{
    uint64_t sent = 0;
    e->largest = 0;
    if (c->struct_size < sizeof *c)
        return refuse(e, -EPROTO, "the case was made for an older version of the ABI");
    if (c->window == 0 || 4 * (uint64_t)c->window > MOST_LANES)
        return refuse(e, -EINVAL, "the grpc+mpi channel takes a window of 1 to 16384");
    if (c->serves && c->nincoming < c->window * c->npeers)
        return refuse(e, -EINVAL, "an incoming slot is needed for each message in flight");
    int rc = check_sizes(e, c->request, c->nrequest, &sent);
    if (rc == 0)
        rc = check_sizes(e, c->reply, c->nreply, &e->largest);
    if (rc == 0)
        rc = check_sizes(e, c->incoming, c->nincoming, &e->largest);
    return rc == 0 && c->serves ? check_size(e, c->answer_nbytes) : rc;
}

static void free_case(engine *e)
{
    ring *rings[] = {&e->calls, &e->responses, &e->done, &e->arrived, &e->loose};
    for (size_t i = 0; i < sizeof rings / sizeof *rings; i++) {
        free(rings[i]->at);
        *rings[i] = (ring){0};
    }
    for (uint32_t i = 0; e->peers && i < e->c->npeers; i++)
        free(e->peers[i].free_slots);
    for (uint32_t i = 0; e->all && i < 2 * e->c->npeers * e->lanes; i++)
        free(e->all[i].out.content);
    for (uint32_t i = 0; e->cut && i < e->ncut; i++)
        free(e->cut[i]);
    void *all[] = {e->peers, e->index_of, e->all, e->cut, e->active};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    e->peers = NULL, e->index_of = NULL, e->all = NULL, e->cut = NULL, e->active = NULL;
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
