/* The progress thread: the messages that go. Part of grpc_mpi_engine.h. */
static int send_request(engine *e, lane *a)
{
    peer *p = &e->peers[a->peer];
    const key *k = &p->keys[a->asks ? THEIR_REPLY : THEIR_REQUEST];
    request r = {{k->text, k->nbytes}, a->number, ++e->request_id};
    void *memory = NULL;
    char text[FRAMING];
    ptrdiff_t nbytes = write_request(text, &r) - text;
    TRY(e, Alloc_mem, nbytes, e->l.info_null, &memory);
    memcpy(a->in.buffer = memory, text, (size_t)nbytes);
    TRY(e, Isend, memory, (int)nbytes, e->l.byte, p->rank, TAG_REQUEST, e->l.comm, &a->in.request);
    a->in.sent = true;
    count(&e->counters.requests, 1);
    return 1;
}

static int send_raw(engine *e, offer *o, int32_t rank)
{
    TRY(e, Isend, o->from, (int)o->nbytes, e->l.byte, rank, TAG_CONTENT, e->l.comm, &o->body);
    o->body_done = 0;
    count(&e->counters.contents, 1);
    return 1;
}

static int send_response(engine *e, lane *a)
{
    _Alignas(16) char st[CB_GRPC_MPI_STATUS_MAX];
    peer *p = &e->peers[a->peer];
    offer *o = &a->out;
    const key *k = &p->keys[a->asks ? OUR_REQUEST : OUR_REPLY];
    response r = {{k->text, k->nbytes}, {0}, a->number, o->nbytes, !goes_raw(e, o->nbytes)};
    sizes s = size_response(&r);
    void *memory = NULL;
    char *content = NULL;
    TRY(e, Alloc_mem, (ptrdiff_t)s.all, e->l.info_null, &memory);
    write_response(o->buffer = memory, &r, &s, &content);
    if (r.single_send)
        copy(e, content, o->from, r.nbytes);
    TRY(e, Isend, memory, (int)s.all, e->l.byte, p->rank, TAG_RESPONSE, e->l.comm, &o->head);
    e->active[e->nactive++] = a;
    o->body_done = 1;
    count(&e->counters.responses, 1);
    TRY(e, Test, &o->head, &o->head_done, st);
    return r.single_send ? 1 : send_raw(e, o, p->rank);
}

static int send_one(engine *e, ring *from, int (*send)(engine *e, lane *a))
{
    if (!any(from))
        return 0;
    lock(e);
    lane *a = pop(from);
    unlock(e);
    return send(e, a);
}

static int end_send(engine *e, lane *a)
{
    TRY(e, Free_mem, a->out.buffer);
    free(a->out.content);
    lock(e);
    a->out = (offer){0};
    if (a->asks)
        half_done(e, a);
    else
        release(e, a);
    unlock(e);
    return 1;
}

static int look_at_sends(engine *e)
{
    _Alignas(16) char st[CB_GRPC_MPI_STATUS_MAX];
    uint32_t kept = 0, n = e->nactive;
    int rc = 0;
    for (uint32_t i = 0; i < n; i++) {
        lane *a = e->active[i];
        offer *o = &a->out;
        if (!o->head_done)
            TRY(e, Test, &o->head, &o->head_done, st);
        if (!o->body_done)
            TRY(e, Test, &o->body, &o->body_done, st);
        if (!o->head_done || !o->body_done)
            e->active[kept++] = a;
        else if ((rc = end_send(e, a)) < 0)
            return rc;
    }
    e->nactive = kept;
    return rc;
}
