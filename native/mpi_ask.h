/* post(), poll() and exchange(). Part of mpi_engine.h. */
static int post_in_window(mpi *m, int32_t rank, uint64_t ticket, const cb_iov *request,
                          const cb_iov *reply)
{
    op *o = &m->asks[m->posted].send;
    wire w;
    if (m->posted == m->c->window)
        return -EAGAIN;
    int rc = outgoing(&m->l, &o->staging, request, &w);
    if (rc < 0)
        return rc;
    TRY(&m->l, Isend, w.base, w.count, w.type, rank, TAG_REQUEST, m->l.comm,
        &m->requests[m->posted]);
    m->window_done[m->posted++] = (cb_done){ticket, 0};
    m->window_reply = reply;
    return 0;
}

static int post(void *self, int32_t rank, uint64_t ticket, const cb_iov *request,
                const cb_iov *reply)
{
    mpi *m = self;
    if (m->window_asker)
        return post_in_window(m, rank, ticket, request, reply);
    int index = peer_index(m, rank);
    if (index < 0)
        return index;
    peer *p = &m->peers[index];
    uint32_t at = (uint32_t)index * m->lanes + (uint32_t)(p->asked & (m->lanes - 1));
    ask *a = &m->asks[at];
    if (p->in_flight == m->c->window || a->pending)
        return -EAGAIN;
    a->ticket = ticket;
    a->reply_nbytes = 0;
    a->pending = reply ? 2 : 1;
    p->in_flight++;
    if (reply) {
        a->reply = *reply;
        int rc = begin_receive(m, &a->receive, reply, rank, reply_tag(m, p->asked));
        if (rc < 0)
            return rc;
    }
    p->asked++;
    return begin_send(m, &a->send, request, rank, TAG_REQUEST);
}

static int end_sends(mpi *m)
{
    int code = m->l.mpi.Waitall((int)m->posted, m->requests, m->statuses);
    if (code != 0)
        return statuses_failed(&m->l, "Waitall", code, m->statuses, (int)m->posted);
    m->batch_at = 0;
    m->batch_n = m->posted;
    m->peers->asked += m->posted;
    m->posted = 0;
    return 0;
}

static int receive_ack(mpi *m, uint64_t *nbytes)
{
    peer *p = m->peers;
    op *o = &m->asks[0].receive;
    wire w;
    int rc = landing(&m->l, &o->staging, m->window_reply, &w);
    if (rc < 0)
        return rc;
    TRY(&m->l, Recv, w.base, w.count, w.type, p->rank, reply_tag(m, p->asked - 1), m->l.comm,
        m->statuses);
    rc = received(&m->l, m->statuses, nbytes);
    landed(&m->l, &o->staging, m->window_reply, *nbytes);
    return rc;
}

/* All but the last message are done when they are sent, and handed out while its ack is coming. */
static int poll_window(mpi *m, cb_done *done, uint32_t max)
{
    int rc = 0;
    if (m->batch_at == m->batch_n && m->posted > 0 && (rc = end_sends(m)) < 0)
        return rc;
    uint32_t left = m->batch_n - m->batch_at;
    if (m->window_reply && left > 1)
        left--;
    uint32_t n = left < max ? left : max;
    memcpy(done, m->window_done + m->batch_at, n * sizeof *done);
    m->batch_at += n;
    if (m->window_reply && n == 1 && m->batch_at == m->batch_n)
        rc = receive_ack(m, &done->reply_nbytes);
    return rc < 0 ? rc : (int)n;
}

static int poll(void *self, cb_done *done, uint32_t max, int64_t timeout_ns)
{
    mpi *m = self;
    patience p = {0};
    if (m->window_asker)
        return poll_window(m, done, max);
    for (int rc;;) {
        uint32_t n = 0;
        for (; n < max && m->done.count > 0; n++) {
            ask *a = &m->asks[pop(&m->done)];
            m->peers[a->peer].in_flight--;
            done[n] = (cb_done){a->ticket, a->reply_nbytes};
        }
        if (n > 0)
            return (int)n;
        if ((rc = look(m)) < 0)
            return rc;
        if (m->done.count == 0 && (rc = wait_on(m, &p, timeout_ns)) != 0)
            return rc < 0 ? rc : 0;
    }
}

static int exchange_polled(mpi *m, int32_t rank, const cb_iov *request, const cb_iov *reply,
                           uint64_t *reply_nbytes, int64_t timeout_ns)
{
    cb_done done = {0, 0};
    int rc = post(m, rank, 0, request, reply);
    if (rc < 0)
        return rc == -EAGAIN ? refuse(&m->l, -EBUSY, "exchange() with requests in flight") : rc;
    rc = poll(m, &done, 1, timeout_ns);
    *reply_nbytes = done.reply_nbytes;
    return rc < 0 ? rc : rc == 0 ? refuse(&m->l, -ETIMEDOUT, "no reply in time") : 0;
}

static int exchange(void *self, int32_t rank, const cb_iov *request, const cb_iov *reply,
                    uint64_t *reply_nbytes, int64_t timeout_ns)
{
    mpi *m = self;
    wire out, in;
    int index, rc;

    if (m->mode != CB_MPI_BLOCKING)
        return exchange_polled(m, rank, request, reply, reply_nbytes, timeout_ns);
    if ((index = peer_index(m, rank)) < 0)
        return index;
    ask *a = &m->asks[(uint32_t)index * m->lanes];
    int tag = reply_tag(m, m->peers[index].asked++);
    if ((rc = outgoing(&m->l, &a->send.staging, request, &out)) < 0 ||
        (rc = landing(&m->l, &a->receive.staging, reply, &in)) < 0)
        return rc;
    TRY(&m->l, Send, out.base, out.count, out.type, rank, TAG_REQUEST, m->l.comm);
    TRY(&m->l, Recv, in.base, in.count, in.type, rank, tag, m->l.comm, m->statuses);
    rc = received(&m->l, m->statuses, reply_nbytes);
    landed(&m->l, &a->receive.staging, reply, *reply_nbytes);
    return rc;
}
