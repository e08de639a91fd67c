/* Waiting: looking all the time, or asleep on completion events. Part of engine.c. */
#define TICK_NS INT64_C(100000000)
#define DRAIN_NS INT64_C(5000000000)
#define PROBE_NS INT64_C(1000000000)

static inline int have(const rdma *r, int what)
{
    return (what & CB_COMPLETED && r->done.count ? CB_COMPLETED : 0) |
           (what & CB_ARRIVED && r->arrived.count ? CB_ARRIVED : 0);
}

/* One turn over everything; how much happened. */
static int look_all(rdma *r)
{
    int n = 0, rc = 0;
    if (r->o.op != CB_RDMA_WRITE && (n = reap_receives(r)) < 0)
        return n;
    for (uint32_t i = 0; i < r->nactive; i++) {
        if ((rc = look(r->active[i])) < 0)
            return rc;
        n += rc;
    }
    for (uint32_t i = 0; n == 0 && i < r->nactive; i++)
        if ((rc = tidy(r->active[i])) < 0)
            return rc;
    if (r->nafters > 0 || r->looks++ % 64 == 0)
        rc = reap_sends(r);
    return rc < 0 ? rc : n;
}

/* Buffers that nobody will tell about: the last requests are neither signalled nor replied to. */
static WIRE_SLOW int mark(rdma *r)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < r->nactive; i++) {
        conn *c = r->active[i];
        if (c->after_count > 0 && last_after(c) > c->wr_signalled && last_after(c) > c->wr_replied)
            rc = post_marker(c);
    }
    return rc;
}

/* A rank that only waits has nothing on its way that could fail, so it would never learn of a peer
 * that is gone: a write of nothing does, unless something is on its way. */
static WIRE_SLOW int probe(rdma *r)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < r->nactive; i++)
        if (r->active[i]->wr_signalled <= r->active[i]->wr_done)
            rc = post_marker(r->active[i]);
    return rc;
}

static void clear_events(rdma *r)
{
    struct ibv_cq *cq;
    void *context;
    while (ibv_get_cq_event(r->events, &cq, &context) == 0)
        ibv_ack_cq_events(cq, 1);
}

/* At most a tick. What came before the queues were armed is looked at first. */
static WIRE_SLOW int doze(rdma *r, int64_t wait_ns)
{
    wait_ns = wait_ns < TICK_NS ? wait_ns : TICK_NS;
    struct timespec ts = {0, wait_ns};
    struct pollfd p = {r->events->fd, POLLIN, 0};
    if (ibv_req_notify_cq(r->recv_cq, 0) || ibv_req_notify_cq(r->send_cq, 0))
        return refuse(r, -EIO, "%s gives no completion events", r->o.device);
    int rc = reap_sends(r);
    if (rc == 0)
        rc = look_all(r);
    if (rc != 0 || have(r, CB_COMPLETED | CB_ARRIVED))
        return rc < 0 ? rc : 0;
    if (ppoll(&p, 1, &ts, NULL) > 0)
        clear_events(r);
    return 0;
}

/* The clock is read only when the first look found nothing, and then not at every turn. */
typedef struct patience {
    int64_t timeout_ns, deadline, left, probed; /* probed: that much of the wait was over then */
    uint32_t turn;
} patience;

static bool over(rdma *r, patience *p)
{
    if (p->turn++ == 0)
        return false;
    if (p->timeout_ns == 0)
        return true;
    if (!p->deadline)
        p->deadline = now_ns() + p->timeout_ns;
    else if (!r->o.spin || p->turn % 64 == 0)
        p->left = p->deadline - now_ns();
    return p->left <= 0;
}

static inline int turn(rdma *r, patience *p)
{
    int rc = look_all(r);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    if (r->nafters > 0 && (rc = mark(r)) < 0)
        return rc;
    if (__builtin_expect(stopped(r), 0))
        return cancelled(r);
    if (__builtin_expect(p->timeout_ns - p->left >= p->probed + PROBE_NS, 0)) {
        p->probed = p->timeout_ns - p->left;
        if ((rc = probe(r)) < 0)
            return rc;
    }
    return r->o.spin || p->turn < 2 || p->timeout_ns == 0 ? 0 : doze(r, p->left);
}

static inline int wait_for(rdma *r, int what, int64_t timeout_ns)
{
    patience p = {.timeout_ns = timeout_ns, .left = timeout_ns};
    for (;;) {
        int ready = have(r, what);
        if (ready)
            return ready;
        if (over(r, &p))
            return stopped(r) ? cancelled(r) : 0;
        int rc = turn(r, &p);
        if (rc < 0)
            return rc;
    }
}

static inline int look_for_lone(rdma *r, cb_incoming *in, uint64_t *reply_nbytes)
{
    return in ? lone_request(r, in) : lone_reply(r, reply_nbytes);
}

/* The same for the request (`in`) or the reply of a lone exchange: also LONE_TAKEN. What may wait is done
 * when the first look was in vain: only then has the next frame nothing new to say of credits. */
static int wait_for_lone(rdma *r, cb_incoming *in, uint64_t *reply_nbytes, int64_t timeout_ns)
{
    patience p = {.timeout_ns = timeout_ns, .left = timeout_ns};
    for (;;) {
        int rc, ready = have(r, in ? CB_ARRIVED : CB_COMPLETED);
        if (ready)
            return ready;
        rc = look_for_lone(r, in, reply_nbytes);
        if (rc == 0)
            rc = tidy(r->lone);
        for (int i = 0; rc == 0 && i < LONE_LOOKS; i++)
            rc = look_for_lone(r, in, reply_nbytes);
        if (rc != 0)
            return rc;
        if (over(r, &p))
            return stopped(r) ? cancelled(r) : 0;
        if ((rc = turn(r, &p)) < 0)
            return rc;
    }
}

int cb_rdma_settle(cb_rdma *r, const int32_t *peers, uint32_t npeers, int64_t timeout_ns)
{
    patience p = {.timeout_ns = timeout_ns, .left = timeout_ns};
    release_given(r);
    for (uint32_t i = 0; i < npeers; i++) {
        conn *c = conn_of(r, peers[i]);
        if (!c)
            return refuse(r, -EINVAL, "rank %d is no peer of this case", (int)peers[i]);
        c->settling++;
        enqueue(c, OUT_SETTLE, 0);
    }
    for (;;) {
        bool settled = true;
        for (uint32_t i = 0; i < npeers; i++) {
            conn *c = &r->conns[peers[i]];
            settled &= (int32_t)(c->settled - c->settling) >= 0 && c->queue.count == 0;
        }
        if (settled)
            return 0;
        if (over(r, &p))
            return refuse(r, -ETIMEDOUT, "a rank did not end its block in time");
        int rc = turn(r, &p);
        if (rc < 0)
            return rc;
    }
}

/* Until the device is done with our memory, or the queue pair has failed. */
static void drain(conn *c)
{
    rdma *r = c->r;
    int64_t deadline = now_ns() + DRAIN_NS;
    if (c->wr == c->wr_done || c->lost)
        return;
    if (c->wr_signalled != c->wr && post_marker(c) < 0)
        return;
    while (c->wr_done != c->wr && now_ns() < deadline && !c->lost)
        reap_sends(r);
}
