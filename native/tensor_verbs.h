/* What the thread of the loop calls: asking and serving. See tensor_ring.h. */

/* Wait until one of these has something: 1, or 0 when it is late. With the lock. */
static int wait_for(engine *e, const ring *one, const ring *other, int64_t timeout_ns)
{
    int64_t until = 0;
    while (!one->count && !other->count) {
        if (e->failed)
            return refuse(e, e->failed, e->thread_error);
        if (stopped(e))
            return refuse(e, -ECANCELED, "stopped");
        if (timeout_ns == 0)
            return 0;
        int64_t now = monotonic_ns();
        if (until == 0)
            until = now + timeout_ns;
        if (now >= until)
            return 0;
        e->waiting = true;
        wait_until(e, &e->news, until - now < LOOK_NS ? until : now + LOOK_NS);
        e->waiting = false;
    }
    return 1;
}

/* ------------------------------------------------------------------ asking */

/* The lane of the next request, with the lock; NULL: the window is full. */
static lane *next_ask(engine *e, peer *p)
{
    lane *a = lane_of(e, p, true, p->asked);
    return p->in_flight == e->c->window || a->state != IDLE ? NULL : a;
}

static void put_request(engine *e, peer *p, lane *a, const cb_iov *reply)
{
    a->state = OPEN;
    a->number = p->asked++;
    a->pending = reply ? 2 : 1;
    a->in = (call){.target = reply ? *reply : (cb_iov){NULL, 0, 0}};
    p->in_flight++;
    if (reply)
        ask_for(e, a);
    if (a->number < p->pulled)
        respond(e, a);
}

static int post(void *self, int32_t rank, uint64_t ticket, const cb_iov *m, const cb_iov *reply)
{
    engine *e = self;
    peer *p = peer_of(e, rank);
    if (!p)
        return refuse(e, -EINVAL, "a rank that is no peer of this case");
    lock(e);
    lane *a = next_ask(e, p);
    int rc = e->failed ? refuse(e, e->failed, e->thread_error) : a ? 0 : -EAGAIN;
    unlock(e);
    if (rc < 0 || (rc = make_offer(e, &a->out, m)) < 0)
        return rc;
    a->ticket = ticket;
    lock(e);
    put_request(e, p, a, reply);
    unlock(e);
    return 0;
}

static int poll(void *self, cb_done *done, uint32_t max, int64_t timeout_ns)
{
    engine *e = self;
    uint32_t n = 0;
    lock(e);
    int rc = wait_for(e, &e->done, &e->done, timeout_ns);
    for (; rc > 0 && n < max && e->done.count; n++) {
        lane *a = pop(&e->done);
        done[n] = (cb_done){a->ticket, a->in.nbytes};
        a->state = IDLE;
        e->peers[a->peer].in_flight--;
    }
    unlock(e);
    return rc < 0 ? rc : (int)n;
}

static int exchange(void *self, int32_t rank, const cb_iov *m, const cb_iov *reply,
                    uint64_t *reply_nbytes, int64_t timeout_ns)
{
    cb_done done;
    int rc = post(self, rank, 0, m, reply);
    if (rc < 0)
        return rc;
    rc = poll(self, &done, 1, timeout_ns);
    if (rc <= 0)
        return rc < 0 ? rc : refuse(self, -ETIMEDOUT, "no reply in time");
    *reply_nbytes = done.reply_nbytes;
    return 0;
}

/* ------------------------------------------------------------------ serving */

static cb_iov message_in(engine *e, const lane *a)
{
    cb_iov m = a->in.target;
    uint64_t rest = a->in.nbytes;
    struct iovec *cut = e->cut[a->slot];
    if (rest == m.nbytes)
        return m;
    for (uint32_t i = 0; i < m.n; i++) {
        cut[i] = m.iov[i];
        if (cut[i].iov_len > rest)
            cut[i].iov_len = rest;
        rest -= cut[i].iov_len;
    }
    return (cb_iov){cut, m.n, a->in.nbytes};
}

static void call_for_loose(engine *e)
{
    while (e->loose.count)
        release(e, pop(&e->loose));
}

static int accept(void *self, cb_incoming *in, uint32_t max, int64_t timeout_ns)
{
    engine *e = self;
    uint32_t n = 0;
    lock(e);
    call_for_loose(e);
    int rc = wait_for(e, &e->arrived, &e->arrived, timeout_ns);
    for (; rc > 0 && n < max && e->arrived.count; n++) {
        lane *a = pop(&e->arrived);
        in[n] = (cb_incoming){(uint64_t)(a - e->all), e->peers[a->peer].rank, a->wants_reply,
                              message_in(e, a)};
        a->state = a->wants_reply ? HELD : LOOSE;
        if (!a->wants_reply)
            push(&e->loose, a);
    }
    unlock(e);
    return rc < 0 ? rc : (int)n;
}

static int answer(void *self, uint64_t ticket, const cb_iov *m)
{
    engine *e = self;
    lane *a = ticket < 2 * e->c->npeers * (uint64_t)e->lanes ? &e->all[ticket] : NULL;
    int rc = check_size(e, m->nbytes);
    if (rc < 0)
        return rc;
    if (!a || a->asks || a->state != HELD)      /* HELD is left by this thread only */
        return refuse(e, -EINVAL, "an answer to a ticket that waits for none");
    if ((rc = make_offer(e, &a->out, m)) < 0)
        return rc;
    lock(e);
    a->state = ANSWERING;
    if (a->asked == a->number + 1)
        respond(e, a);
    unlock(e);
    return 0;
}

static int progress(void *self, int64_t timeout_ns)
{
    engine *e = self;
    lock(e);
    call_for_loose(e);
    int rc = wait_for(e, &e->done, &e->arrived, timeout_ns);
    int flags = (e->done.count ? CB_COMPLETED : 0) | (e->arrived.count ? CB_ARRIVED : 0);
    unlock(e);
    return rc < 0 ? rc : flags;
}
