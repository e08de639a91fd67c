/*
 * The progress thread: the messages that come. Part of grpc_mpi_engine.h.
 */

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
