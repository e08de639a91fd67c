/* accept(), answer() and progress(). Part of mpi_engine.h. */
/* The message in slot `at` with the lengths that really arrived. */
static cb_iov message_in(const mpi *m, uint32_t at)
{
    const cb_iov *whole = &m->c->incoming[at];
    slot *s = &m->slots[at];
    uint64_t left = s->nbytes;
    cb_iov cut = {s->cut, 0, s->nbytes};
    if (__builtin_expect(left == whole->nbytes, 1))
        return *whole;
    for (uint32_t i = 0; i < whole->n && left > 0; i++, cut.n++) {
        size_t part = whole->iov[i].iov_len < left ? whole->iov[i].iov_len : left;
        s->cut[i] = (struct iovec){whole->iov[i].iov_base, part};
        left -= part;
    }
    return cut;
}

static int deliver(mpi *m, cb_incoming *in, uint32_t max)
{
    uint32_t n = 0, every = m->c->reply_every;
    for (; n < max && m->arrived.count > 0; n++) {
        uint32_t at = pop(&m->arrived);
        slot *s = &m->slots[at];
        bool replied = every == 1 || (every > 1 && (s->number + 1) % every == 0);
        s->state = replied ? HELD : LOOSE;
        if (!replied)
            push(&m->loose, at);
        in[n] = (cb_incoming){at, m->peers[s->peer].rank, replied, message_in(m, at)};
    }
    return (int)n;
}

static int accept_polled(mpi *m, cb_incoming *in, uint32_t max, int64_t timeout_ns)
{
    patience p = {0};
    int rc;
    while (m->loose.count > 0)
        if ((rc = post_slot(m, pop(&m->loose))) < 0)
            return rc;
    for (;;) {
        if (m->arrived.count > 0)
            return deliver(m, in, max);
        if ((rc = look(m)) < 0)
            return rc;
        if (m->arrived.count == 0 && (rc = wait_on(m, &p, timeout_ns)) != 0)
            return rc < 0 ? rc : 0;
    }
}

/* With a timeout of 0 the blocking servers look before they block: 1 when something is there. */
static int something_there(mpi *m, int64_t timeout_ns)
{
    int there = 1;
    if (__builtin_expect(timeout_ns == 0, 0))
        TRY(&m->l, Iprobe, m->peers->rank, TAG_REQUEST, m->l.comm, &there, m->statuses);
    return there;
}

static int accept_one(mpi *m, cb_incoming *in, int64_t timeout_ns)
{
    peer *p = m->peers;
    slot *s = m->slots;
    wire w;
    patience patience = {0};
    int rc = 0;
    while (m->held && rc == 0)  /* the window is full: nothing can come before it is answered */
        rc = wait_on(m, &patience, timeout_ns);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    if ((rc = something_there(m, timeout_ns)) <= 0 ||
        (rc = landing(&m->l, &s->receive.staging, m->c->incoming, &w)) < 0)
        return rc;
    TRY(&m->l, Recv, w.base, w.count, w.type, p->rank, TAG_REQUEST, m->l.comm, m->statuses);
    if ((rc = received(&m->l, m->statuses, &s->nbytes)) < 0)
        return rc;
    landed(&m->l, &s->receive.staging, m->c->incoming, s->nbytes);
    m->held = m->c->reply_every == 1;
    s->state = m->held ? HELD : IDLE;
    s->number = p->arrived++;
    *in = (cb_incoming){0, p->rank, m->held, *m->c->incoming};
    if (__builtin_expect(s->nbytes != in->message.nbytes, 0))
        in->message = message_in(m, 0);
    return 1;
}

/* Are these statuses byte for byte the same? Then so are the lengths that they tell. */
static bool same_statuses(const mpi *m, size_t n)
{
    size_t nbytes = m->l.status_nbytes;
    return memcmp(m->statuses, m->statuses + nbytes, (n - 1) * nbytes) == 0;
}

/* The lengths of a window. Nothing is done or kept for each message where all went to one buffer and
 * filled it, as in osu_bw: it would stand between the last message of a window and its ack. */
static int measure_window(mpi *m, uint32_t n)
{
    uint64_t nbytes = 0;
    int rc = received(&m->l, m->statuses, &nbytes);
    m->window_plain = rc == 0 && m->one_buffer && same_statuses(m, n) &&
                      nbytes == m->c->incoming->nbytes;
    for (uint32_t i = 0; rc == 0 && !m->window_plain && i < n; i++) {
        slot *s = &m->slots[i];
        if ((rc = received(&m->l, status_at(m, (int)i), &s->nbytes)) == 0)
            landed(&m->l, &s->receive.staging, &m->c->incoming[i], s->nbytes);
    }
    return rc;
}

static int take_window(mpi *m)
{
    int n = (int)m->c->window, each = m->one_buffer ? 0 : 1;
    int32_t rank = m->peers->rank;
    const wire *w = m->window_wires;
    handle comm = m->l.comm, *request = m->requests;
    for (int i = 0; i < n; i++, w += each)
        TRY(&m->l, Irecv, w->base, w->count, w->type, rank, TAG_REQUEST, comm, request + i);
    int code = m->l.mpi.Waitall(n, m->requests, m->statuses);
    if (code != 0)
        return statuses_failed(&m->l, "Waitall", code, m->statuses, n);
    m->batch_at = 0;
    m->batch_n = (uint32_t)n;
    m->peers->arrived += (uint32_t)n;
    m->slots[n - 1].number = m->peers->arrived - 1;
    m->slots[n - 1].state = HELD;
    return measure_window(m, (uint32_t)n);
}

static int accept_window(mpi *m, cb_incoming *in, uint32_t max, int64_t timeout_ns)
{
    int rc;
    if (m->batch_at == m->batch_n &&
        ((rc = something_there(m, timeout_ns)) <= 0 || (rc = take_window(m)) < 0))
        return rc;
    uint32_t first = m->batch_at, left = m->batch_n - first, n = left < max ? left : max;
    const cb_iov whole = *m->c->incoming;
    int32_t rank = m->peers->rank;
    for (uint32_t i = 0; i < n; i++)
        in[i] = (cb_incoming){first + i, rank, 0, whole};
    for (uint32_t i = 0; !m->window_plain && i < n; i++)
        in[i].message = message_in(m, first + i);
    in[n - 1].wants_reply = n == left;
    m->batch_at += n;
    return (int)n;
}

static int accept(void *self, cb_incoming *in, uint32_t max, int64_t timeout_ns)
{
    mpi *m = self;
    if (max == 0)
        return 0;
    if (m->serial_server)
        return accept_one(m, in, timeout_ns);
    if (m->window_server)
        return accept_window(m, in, max, timeout_ns);
    return accept_polled(m, in, max, timeout_ns);
}

static int answer(void *self, uint64_t ticket, const cb_iov *message)
{
    mpi *m = self;
    wire w;
    if (ticket >= m->nslots || m->slots[ticket].state != HELD)
        return refuse(&m->l, -EINVAL, "an answer to a ticket that waits for none");
    slot *s = &m->slots[ticket];
    int32_t rank = m->peers[s->peer].rank;
    int tag = reply_tag(m, s->number);
    if (!m->serial_server && !m->window_server) {
        s->state = ANSWERING;
        return begin_send(m, &s->send, message, rank, tag);
    }
    int rc = outgoing(&m->l, &s->send.staging, message, &w);
    if (rc < 0)
        return rc;
    s->state = IDLE;
    m->held = 0;
    TRY(&m->l, Send, w.base, w.count, w.type, rank, tag, m->l.comm);
    return 0;
}

static int progress(void *self, int64_t timeout_ns)
{
    mpi *m = self;
    patience p = {0};
    for (int rc;;) {
        int flags = (m->done.count ? CB_COMPLETED : 0) | (m->arrived.count ? CB_ARRIVED : 0);
        if (flags)
            return flags;
        if ((rc = look(m)) < 0)
            return rc;
        if (!m->done.count && !m->arrived.count && (rc = wait_on(m, &p, timeout_ns)) != 0)
            return rc < 0 ? rc : 0;
    }
}
