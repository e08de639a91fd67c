/* Waiting, and the requests that MPI_Testsome looks at. Part of mpi_engine.h. */
/* ------------------------------------------------------------------ waiting */

typedef struct patience {
    int64_t until;
    uint32_t spins;
} patience;

static int64_t monotonic_ns(void)   /* for deadlines */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Nothing was found: 0 to look again, 1 when it is late, -ECANCELED. */
static int wait_on(mpi *m, patience *p, int64_t timeout_ns)
{
    if (stopped(m))
        return refuse(&m->l, -ECANCELED, "stopped");
    if (timeout_ns == 0)
        return 1;
    if (p->spins++ % SPINS_PER_LOOK == 0) {
        int64_t now = monotonic_ns();
        if (p->until == 0)
            p->until = now + timeout_ns;
        else if (now >= p->until)
            return 1;
    }
    if (p->spins > SPINS_BEFORE_YIELD)
        sched_yield();
    return 0;
}

/* ------------------------------------------------------------------ requests that are looked at */

static bool fits(const mpi *m, const op *o, const wire *w, int32_t rank, int tag)
{
    return o->persistent != m->l.null && o->generation == m->l.generation && o->peer == rank &&
           o->tag == tag && o->wire.base == w->base && o->wire.count == w->count &&
           o->wire.type == w->type;
}

static int make_persistent(mpi *m, op *o, const wire *w, int32_t rank, int tag, bool sends)
{
    if (fits(m, o, w, rank, tag))
        return 0;
    if (o->persistent != m->l.null)
        TRY(&m->l, Request_free, &o->persistent);
    o->persistent = m->l.null;
    if (sends)
        TRY(&m->l, Send_init, w->base, w->count, w->type, rank, tag, m->l.comm, &o->persistent);
    else
        TRY(&m->l, Recv_init, w->base, w->count, w->type, rank, tag, m->l.comm, &o->persistent);
    o->wire = *w;
    o->peer = rank;
    o->tag = tag;
    o->generation = m->l.generation;
    return 0;
}

static int begin(mpi *m, op *o, const wire *w, int32_t rank, int tag, bool sends)
{
    handle *request = &m->requests[m->active];
    if (m->mode == CB_MPI_PERSISTENT) {
        int rc = make_persistent(m, o, w, rank, tag, sends);
        if (rc < 0)
            return rc;
        TRY(&m->l, Start, &o->persistent);
        *request = o->persistent;
    } else if (sends) {
        TRY(&m->l, Isend, w->base, w->count, w->type, rank, tag, m->l.comm, request);
    } else {
        TRY(&m->l, Irecv, w->base, w->count, w->type, rank, tag, m->l.comm, request);
    }
    m->who[m->active++] = o;
    return 0;
}

static int begin_send(mpi *m, op *o, const cb_iov *message, int32_t rank, int tag)
{
    wire w;
    int rc = outgoing(&m->l, &o->staging, message, &w);
    return rc < 0 ? rc : begin(m, o, &w, rank, tag, true);
}

static int begin_receive(mpi *m, op *o, const cb_iov *message, int32_t rank, int tag)
{
    wire w;
    int rc = landing(&m->l, &o->staging, message, &w);
    return rc < 0 ? rc : begin(m, o, &w, rank, tag, false);
}

static int post_slot(mpi *m, uint32_t at)
{
    slot *s = &m->slots[at];
    peer *p = &m->peers[s->peer];
    s->state = POSTED;
    push(&p->posted, at);
    return begin_receive(m, &s->receive, &m->c->incoming[at], p->rank, TAG_REQUEST);
}

static void asked(mpi *m, uint32_t at)
{
    ask *a = &m->asks[at];
    if (--a->pending == 0)
        push(&m->done, at);
}

/* Requests of a peer are handed out in the order in which they were sent. */
static void arrive(mpi *m, peer *p)
{
    while (p->posted.count > 0 && m->slots[p->posted.at[p->posted.head]].state == ARRIVED) {
        uint32_t at = pop(&p->posted);
        m->slots[at].number = p->arrived++;
        push(&m->arrived, at);
    }
}

static int complete(mpi *m, op *o, status st)
{
    ask *a = &m->asks[o->at];
    slot *s = &m->slots[o->at];
    int rc = 0;

    switch (o->kind) {
    case ASK_RECEIVE:
        if (m->closing)         /* perhaps cancelled */
            return 0;
        if ((rc = received(&m->l, st, &a->reply_nbytes)) < 0)
            return rc;
        landed(&m->l, &o->staging, &a->reply, a->reply_nbytes);
        asked(m, o->at);
        return 0;
    case ASK_SEND:
        asked(m, o->at);
        return 0;
    case SERVE_RECEIVE:
        if (m->closing)
            return 0;
        if ((rc = received(&m->l, st, &s->nbytes)) < 0)
            return rc;
        landed(&m->l, &o->staging, &m->c->incoming[o->at], s->nbytes);
        s->state = ARRIVED;
        arrive(m, &m->peers[s->peer]);
        return 0;
    default:
        s->state = IDLE;
        return m->closing ? 0 : post_slot(m, o->at);
    }
}

/* Look at everything that is in flight once; what completed is taken out. */
static int look(mpi *m)
{
    int n = 0, kept = 0;
    if (m->active == 0)
        return 0;
    int code = m->l.mpi.Testsome(m->active, m->requests, &n, m->indices, m->statuses);
    if (code != 0)
        return statuses_failed(&m->l, "Testsome", code, m->statuses, n > 0 ? n : 0);
    if (n <= 0 || n == m->l.undefined)
        return 0;
    for (int i = 0; i < n; i++) {
        op *o = m->who[m->indices[i]];
        m->who[m->indices[i]] = NULL;
        int rc = complete(m, o, status_at(m, i));
        if (rc < 0)
            return rc;
    }
    for (int i = 0; i < m->active; i++)
        if (m->who[i]) {
            m->who[kept] = m->who[i];
            m->requests[kept++] = m->requests[i];
        }
    m->active = kept;
    return 0;
}
