/* prepare() and finish(). Part of mpi_engine.h. */
static bool any_left(const mpi *m, bool sends)
{
    for (int i = 0; i < m->active; i++)
        if ((m->who[i]->kind == ASK_SEND || m->who[i]->kind == SERVE_SEND) == sends)
            return true;
    return false;
}

/* Completes what is sent, takes back what is still to be received. */
static int drain(mpi *m)
{
    patience p = {0};
    int rc = 0;
    m->closing = true;
    while (rc == 0 && any_left(m, true))
        if ((rc = look(m)) == 0)
            rc = wait_on(m, &p, FINISH_NS);
    for (int i = 0; i < m->active; i++)
        if (m->who[i]->kind == ASK_RECEIVE || m->who[i]->kind == SERVE_RECEIVE)
            TRY(&m->l, Cancel, &m->requests[i]);
    while (rc == 0 && m->active > 0)
        if ((rc = look(m)) == 0 && m->active > 0)
            rc = wait_on(m, &p, FINISH_NS);
    return rc == 1 ? refuse(&m->l, -ETIMEDOUT, "messages are still in flight") : rc;
}

static void free_op(mpi *m, op *o)
{
    free(o->staging.base);
    if (o->persistent != m->l.null)
        m->l.mpi.Request_free(&o->persistent);
}

static void free_case(mpi *m)
{
    for (uint32_t i = 0; m->asks && i < m->c->npeers * m->lanes; i++) {
        free_op(m, &m->asks[i].send);
        free_op(m, &m->asks[i].receive);
    }
    for (uint32_t i = 0; m->slots && i < m->nslots; i++) {
        free_op(m, &m->slots[i].send);
        free_op(m, &m->slots[i].receive);
        free(m->slots[i].cut);
    }
    for (uint32_t i = 0; m->peers && i < m->c->npeers; i++)
        free(m->peers[i].posted.at);
    if (m->l.layouts)
        forget_layouts(&m->l);
    void *all[] = {m->asks, m->slots, m->peers, m->index_of, m->done.at, m->arrived.at,
                   m->loose.at, m->requests, m->who, m->indices, m->statuses,
                   m->window_done, m->window_wires, m->l.layouts};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    m->asks = NULL, m->slots = NULL, m->peers = NULL, m->index_of = NULL, m->requests = NULL;
    m->who = NULL, m->indices = NULL, m->statuses = NULL, m->l.layouts = NULL;
    m->window_done = NULL, m->window_wires = NULL;
    m->done = m->arrived = m->loose = (ring){0};
    m->active = 0;
    m->c = NULL;
}

static int finish(void *self)
{
    mpi *m = self;
    if (!m->c)
        return 0;
    int rc = m->statuses && m->who ? drain(m) : 0;
    if (rc == 0)                /* else MPI may still use this memory: it stays until the end */
        free_case(m);
    m->c = NULL;
    m->active = 0;
    return rc;
}

static uint32_t lanes_for(uint32_t window)
{
    uint32_t lanes = 1;
    if (window == 1)
        return 1;
    while (lanes < 4 * window && lanes < MOST_LANES)
        lanes *= 2;
    return lanes;
}

static int check_sizes(mpi *m, const cb_iov *slots, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (slots[i].nbytes > INT_MAX) {
            snprintf(m->l.error, sizeof m->l.error, "a message of %llu bytes: the mpi channel "
                     "sends at most %d", (unsigned long long)slots[i].nbytes, INT_MAX);
            return -EMSGSIZE;
        }
    return 0;
}

static int check_case(mpi *m, const cb_case *c)
{
    const cb_iov answer = {NULL, 0, c->answer_nbytes};
    if (c->window == 0 || c->window > MOST_LANES)
        return refuse(&m->l, -EINVAL, "the mpi channel takes a window of 1 to 16384");
    if (c->serves && c->nincoming < c->window * c->npeers)
        return refuse(&m->l, -EINVAL, "an incoming slot is needed for each message in flight");
    int rc = check_sizes(m, c->request, c->nrequest);
    if (rc == 0)
        rc = check_sizes(m, c->reply, c->nreply);
    if (rc == 0)
        rc = check_sizes(m, c->incoming, c->nincoming);
    return rc == 0 ? check_sizes(m, &answer, c->serves ? 1 : 0) : rc;
}

static bool make_ring(ring *r, uint32_t size)
{
    *r = (ring){calloc(size + 1, sizeof(uint32_t)), size, 0, 0};
    return r->at != NULL;
}

static bool make_peers(mpi *m, const cb_case *c)
{
    m->nranks = 0;
    for (uint32_t i = 0; i < c->npeers; i++)
        if (c->peers[i] >= m->nranks)
            m->nranks = c->peers[i] + 1;
    m->peers = calloc(c->npeers + 1, sizeof *m->peers);
    m->index_of = malloc(((size_t)m->nranks + 1) * sizeof *m->index_of);
    if (!m->peers || !m->index_of)
        return false;
    memset(m->index_of, 0xff, (size_t)m->nranks * sizeof *m->index_of);
    for (uint32_t i = 0; i < c->npeers; i++) {
        m->peers[i].rank = c->peers[i];
        m->index_of[c->peers[i]] = (int32_t)i;
        if (!make_ring(&m->peers[i].posted, c->window))
            return false;
    }
    return true;
}

static void name_op(const mpi *m, op *o, enum op_kind kind, uint32_t at)
{
    o->kind = kind;
    o->at = at;
    o->persistent = m->l.null;
}

static bool make_asks(mpi *m, const cb_case *c)
{
    uint32_t n = c->npeers * m->lanes;
    m->asks = calloc(n + 1, sizeof *m->asks);
    m->window_done = calloc(c->window, sizeof *m->window_done);
    for (uint32_t i = 0; m->asks && i < n; i++) {
        m->asks[i].peer = i / m->lanes;
        name_op(m, &m->asks[i].send, ASK_SEND, i);
        name_op(m, &m->asks[i].receive, ASK_RECEIVE, i);
    }
    return m->asks && m->window_done && make_ring(&m->done, n);
}

static bool make_slots(mpi *m, const cb_case *c)
{
    m->nslots = c->serves ? c->npeers * c->window : 0;
    m->slots = calloc(m->nslots + 1, sizeof *m->slots);
    m->window_wires = calloc(m->nslots + 1, sizeof *m->window_wires);
    for (uint32_t i = 0; m->slots && i < m->nslots; i++) {
        slot *s = &m->slots[i];
        s->peer = i / c->window;
        name_op(m, &s->receive, SERVE_RECEIVE, i);
        name_op(m, &s->send, SERVE_SEND, i);
        if (!(s->cut = calloc(c->incoming[i].n + 1, sizeof *s->cut)))
            return false;
    }
    return m->slots && m->window_wires && make_ring(&m->arrived, m->nslots) &&
           make_ring(&m->loose, m->nslots);
}

/* Active at once: a send and a receive per ask, one of them per slot; and as many again, because
 * what completes may start something before it is taken out. */
static bool make_requests(mpi *m, const cb_case *c)
{
    size_t n = 6u * c->npeers * (size_t)c->window + 1;
    m->requests = malloc(n * sizeof *m->requests);
    m->who = calloc(n, sizeof *m->who);
    m->indices = calloc(n, sizeof *m->indices);
    m->statuses = calloc(n, m->l.status_nbytes);
    for (m->l.nlayouts = 64; m->l.nlayouts < 8 * n; m->l.nlayouts *= 2) {}
    m->l.layouts = calloc(m->l.nlayouts, sizeof *m->l.layouts);
    return m->requests && m->who && m->indices && m->statuses && m->l.layouts;
}

static int make_types(mpi *m, const cb_iov *slots, uint32_t n)
{
    handle type;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        if (slots[i].n > 1 && !m->l.pack)
            rc = type_of(&m->l, &slots[i], &type);
    return rc;
}

static bool one_buffer(const cb_iov *slots, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (slots[i].n != 1 || memcmp(slots[i].iov, slots[0].iov, sizeof *slots[0].iov) != 0)
            return false;
    return true;
}

static int start_case(mpi *m, const cb_case *c)
{
    bool blocking = m->mode == CB_MPI_BLOCKING && c->npeers == 1;
    bool windowed = blocking && c->window > 1 && c->reply_every == c->window;
    m->serial_server = blocking && c->window == 1 && c->serves && !c->asks;
    m->window_server = windowed && c->serves && !c->asks;
    m->window_asker = windowed && c->asks && !c->serves;
    m->one_buffer = m->window_server && one_buffer(c->incoming, m->nslots);
    m->closing = false;
    m->posted = m->batch_at = m->batch_n = m->held = 0;
    int rc = make_types(m, c->request, c->nrequest);
    if (rc == 0)
        rc = make_types(m, c->reply, c->nreply);
    if (rc == 0)
        rc = make_types(m, c->incoming, c->nincoming);
    for (uint32_t i = 0; m->window_server && rc == 0 && i < m->nslots; i++) {
        rc = landing(&m->l, &m->slots[i].receive.staging, &c->incoming[i], &m->window_wires[i]);
    }
    if (m->serial_server || m->window_server)
        return rc;
    for (uint32_t i = 0; rc == 0 && i < m->nslots; i++)
        rc = post_slot(m, i);
    return rc;
}

static int prepare(void *self, const cb_case *c)
{
    mpi *m = self;
    int rc = finish(m);
    if (rc == 0)
        rc = check_case(m, c);
    if (rc < 0)
        return rc;
    m->c = c;
    m->lanes = lanes_for(c->window);
    if (make_peers(m, c) && make_asks(m, c) && make_slots(m, c) && make_requests(m, c))
        rc = start_case(m, c);
    else
        rc = refuse(&m->l, -ENOMEM, "out of memory");
    if (rc < 0)
        m->active ? (void)finish(m) : free_case(m);
    return rc;
}
