/*
 * The progress thread: the local table, and the messages that come. Part of grpc_mpi_engine.h.
 */

/* ------------------------------------------------------------------ the local table */

static lane *lane_of(engine *e, peer *p, bool asks, uint64_t number)
{
    return (asks ? p->asks : p->serves) + (number & (e->lanes - 1));
}

/* A tensor was put and the peer asks for it. With the lock. */
static void respond(engine *e, lane *a)
{
    push(&e->responses, a);
    tell_thread(e);
}

/* The next requests of a peer are asked for, as far as there is room for them. With the lock. */
static void call_next(engine *e, peer *p)
{
    for (lane *a; p->nfree > 0; p->called++) {
        a = lane_of(e, p, false, p->called);
        if (a->state != IDLE || e->closing)
            return;
        a->state = OPEN;
        a->number = p->called;
        a->wants_reply = e->c->reply_every && (a->number + 1) % e->c->reply_every == 0;
        a->slot = p->free_slots[--p->nfree];
        a->in = (call){.target = e->c->incoming[a->slot]};
        a->out = (offer){0};
        push(&e->calls, a);
        tell_thread(e);
    }
}

/* A server's exchange is over and its slot free. With the lock. */
static void release(engine *e, lane *a)
{
    peer *p = &e->peers[a->peer];
    a->state = IDLE;
    p->free_slots[p->nfree++] = a->slot;
    call_next(e, p);
}

/* One half of an asker's exchange is complete. With the lock. */
static void half_done(engine *e, lane *a)
{
    if (--a->pending > 0)
        return;
    push(&e->done, a);
    tell_loop(e);
}

/* ------------------------------------------------------------------ what comes */

/* 1: a message with this tag, whose bytes are in *data, for the caller to free; 0: none. */
static int probe(engine *e, enum tag tag, span *data, int32_t *source)
{
    _Alignas(16) char st[CB_GRPC_MPI_STATUS_MAX];
    handle message;
    int flag = 0, nbytes = 0, rc = 0;
    TRY(e, Improbe, e->l.any_source, tag, e->l.comm, &flag, &message, st);
    if (!flag)
        return 0;
    TRY(e, Get_count, st, e->l.byte, &nbytes);
    memcpy(source, st + e->l.source_at, sizeof *source);
    if (nbytes < 0 || (uint64_t)nbytes > FRAMING + (tag == TAG_RESPONSE ? e->largest : 0))
        return refuse(e, -EMSGSIZE, "a message is longer than the case allows");
    char *memory = allocate_zeroed(e, (uint64_t)nbytes, &rc);
    if (!memory)
        return rc;
    int code = e->l.mpi.Mrecv(memory, nbytes, e->l.byte, &message, st);
    if (code != 0) {
        free(memory);
        return mpi_failed(e, "Mrecv", code);
    }
    *data = (span){memory, (uint64_t)nbytes};
    return 1;
}

static bool same(const key *k, span text)
{
    return k->nbytes == text.nbytes && memcmp(k->text, text.at, text.nbytes) == 0;
}

static peer *peer_of(engine *e, int32_t rank)
{
    return rank < 0 || rank >= e->nranks || e->index_of[rank] < 0 ? NULL
                                                                 : &e->peers[e->index_of[rank]];
}

/* A peer asks for its next request: which of ours that is, its number says. */
static int asked_for_request(engine *e, peer *p, uint64_t number)
{
    if (number != p->pulled)
        return refuse(e, -EPROTO, "a peer asks for its requests out of order");
    p->pulled++;
    lane *a = lane_of(e, p, true, number);
    if (a->state == OPEN && a->number == number && a->out.put)
        respond(e, a);
    return 0;
}

static void asked_for_reply(engine *e, peer *p, uint64_t number)
{
    lane *a = lane_of(e, p, false, number);
    a->asked = number + 1;
    if (a->state == ANSWERING && a->number == number && a->out.put)
        respond(e, a);
}

/* A request for a tensor of ours; an empty one is the peer's last of this case. */
static int take_request(engine *e, span data, int32_t source)
{
    request r;
    peer *p = peer_of(e, source);
    int rc = 0;
    if (p && data.nbytes == 0) {
        p->took_leave = true;
        return 0;
    }
    if (!p || !read_request(data, &r))
        return refuse(e, -EPROTO, "a request for a tensor cannot be read");
    lock(e);
    if (same(&p->keys[OUR_REQUEST], r.key))
        rc = asked_for_request(e, p, r.step);
    else if (same(&p->keys[OUR_REPLY], r.key))
        asked_for_reply(e, p, r.step);
    else
        rc = refuse(e, -EPROTO, "a request has a key that is none of this case");
    unlock(e);
    return rc;
}

/* The call that this response completes, or NULL. With the lock. */
static lane *find_call(engine *e, peer *p, const response *r)
{
    lane *a = NULL;
    if (same(&p->keys[THEIR_REPLY], r->key))
        a = lane_of(e, p, true, r->step);
    else if (same(&p->keys[THEIR_REQUEST], r->key))
        a = lane_of(e, p, false, r->step);
    return a && a->state == OPEN && a->number == r->step && a->in.sent && !a->in.arrived ? a : NULL;
}

static int land(engine *e, lane *a, const response *r, int32_t source)
{
    _Alignas(16) char st[CB_GRPC_MPI_STATUS_MAX];
    call *in = &a->in;
    int rc;
    if (r->nbytes > in->target.nbytes)
        return refuse(e, -EMSGSIZE, "a message is larger than its slot");
    rc = r->single_send ? take_content(e, &in->target, r->content)
                        : take_raw(e, &in->target, source, r->nbytes);
    if (rc < 0)
        return rc;
    in->nbytes = r->nbytes;
    count(&e->counters.tensors, 1);
    TRY(e, Wait, &in->request, st);
    if (in->buffer)
        TRY(e, Free_mem, in->buffer);
    in->buffer = NULL;
    return 0;
}

static int arrive(engine *e, lane *a)
{
    peer *p = &e->peers[a->peer];
    a->in.arrived = true;
    if (a->asks) {
        half_done(e, a);
        return 0;
    }
    if (a->number != p->arrived++)
        return refuse(e, -EPROTO, "the requests of a peer came out of order");
    a->state = ARRIVED;
    push(&e->arrived, a);
    tell_loop(e);
    return 0;
}

static int take_response(engine *e, span data, int32_t source)
{
    response r;
    peer *p = peer_of(e, source);
    if (!read_response(data, &r))
        return refuse(e, -EPROTO, "a response cannot be read");
    lock(e);
    lane *a = p ? find_call(e, p, &r) : NULL;
    unlock(e);
    if (!a)
        return refuse(e, -EPROTO, "a response has a key or step that nobody asked for");
    int rc = land(e, a, &r, source);
    if (rc < 0)
        return rc;
    lock(e);
    rc = arrive(e, a);
    unlock(e);
    return rc;
}

static int look_for(engine *e, enum tag tag, int (*take)(engine *e, span data, int32_t source))
{
    span data;
    int32_t source;
    int rc = probe(e, tag, &data, &source);
    if (rc <= 0)
        return rc;
    rc = take(e, data, source);
    free((char *)data.at);
    return rc < 0 ? rc : 1;
}
