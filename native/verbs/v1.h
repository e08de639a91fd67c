/* Protocol v1: a tensor is copied into a tensor buffer of its name, that is written into the same
 * buffer of the other side, copied from there, and BUFFER_IDLE gives the buffer back. With the lock.
 * Part of engine.c. */
static conn *conn_of_buffer(engine *e, const tensor_buffer *b)
{
    return &e->conns[e->peers[b->peer].rank];
}

static bool make_buffers(engine *e)
{
    uint32_t n = e->o.protocol == CB_VERBS_V1 ? e->c->npeers * FLOWS * e->step : 0;
    e->buffers = calloc((size_t)n + 1, sizeof *e->buffers);
    for (uint32_t i = 0; e->buffers && i < n; i++) {
        tensor_buffer *b = &e->buffers[i];
        b->index = i;
        b->place = i % e->step;
        b->flow = i / e->step % FLOWS;
        b->peer = i / e->step / FLOWS;
        if (b->place == 0)
            e->peers[b->peer].buffers[b->flow] = b;
    }
    return e->buffers != NULL;
}

static void free_pages(tensor_buffer *b)
{
    if (!b->at)
        return;
    ibv_dereg_mr(b->mr);
    munmap(b->at, b->room);
    b->at = NULL;
}

static void free_buffers(engine *e)
{
    uint32_t n = e->buffers && e->o.protocol == CB_VERBS_V1 ? e->c->npeers * FLOWS * e->step : 0;
    for (uint32_t i = 0; i < n; i++)
        free_pages(&e->buffers[i]);
    free(e->buffers);
    e->buffers = NULL;
}

/* Of at least so many bytes; what it had before is discarded. */
static bool make_room(engine *e, tensor_buffer *b, uint64_t nbytes)
{
    int rc;
    if (b->at && b->room >= nbytes)
        return true;
    free_pages(b);
    b->room = (nbytes + 4095) / 4096 * 4096;
    if (!(b->at = make_pages(&e->regions, b->room, &b->mr, &rc)))
        fail(e, rc, "%s", e->region_error);
    return b->at != NULL;
}

/* ------------------------------------------------------------------ the owner */

static void write_buffer(engine *e, tensor_buffer *b, lane *a)
{
    offer *o = &a->out;
    conn *c = conn_of_buffer(e, b);
    message m = {.type = TENSOR_WRITE, .step = a->number, .nbytes = o->nbytes,
                 .index = b->room, .data_type = DT_UINT8};
    name_tensor(&m, e->peers[b->peer].keys[b->flow], b->place);
    write_message(b->at, &m);
    copy(e, b->at + MESSAGE_NBYTES, o->from, o->nbytes);
    b->local_busy = b->remote_busy = true;
    add_transfer(c, (transfer){.cargo = CARGO_BUFFER, .index = b->index, .local = b->at,
                               .lkey = b->mr->lkey, .nbytes = MESSAGE_NBYTES + o->nbytes,
                               .remote = b->address, .rkey = b->rkey,
                               .imm = b->place * 2 + (b->flow == OUR_REPLY)}, &b->way);
    offer_done(e, a);
    pump(e, c);
}

/* A buffer that is too small or not there is made, and the other side is asked for as much. */
static void send_next(engine *e, tensor_buffer *b)
{
    lane *a = b->first;
    if (!a || b->asked || b->local_busy || b->remote_busy)
        return;
    if (!b->at || b->room < MESSAGE_NBYTES + a->out.nbytes) {
        if (!make_room(e, b, MESSAGE_NBYTES + a->out.nbytes))
            return;
        b->asked = true;
        add_note(conn_of_buffer(e, b), &b->note, (note){.type = BUFFER_REQUEST, .buffer = b});
        pump(e, conn_of_buffer(e, b));
        return;
    }
    b->first = a->next;
    write_buffer(e, b, a);
}

static void v1_respond(engine *e, lane *a)
{
    const peer *p = &e->peers[a->peer];
    tensor_buffer *b = &p->buffers[a->asks ? OUR_REQUEST : OUR_REPLY][a->number % e->step];
    a->next = NULL;
    if (b->first)
        b->last->next = a;
    else
        b->first = a;
    b->last = a;
    send_next(e, b);
}

/* ------------------------------------------------------------------ messages about buffers */

static void grant_buffer(engine *e, tensor_buffer *b, uint64_t nbytes)
{
    if (nbytes > MESSAGE_NBYTES + e->largest + 4096)
        fail(e, -EPROTO, "rank %d asks for a buffer of %llu bytes, more than any message",
             (int)e->peers[b->peer].rank, (unsigned long long)nbytes);
    else if (make_room(e, b, nbytes))
        add_note(conn_of_buffer(e, b), &b->note, (note){.type = BUFFER_RESPONSE, .buffer = b});
}

/* Of these flows, the one that the name belongs to; NULL: of another case. */
static tensor_buffer *named_buffer(engine *e, peer *p, const message *m, enum flow one,
                                   enum flow other)
{
    uint64_t place = m->step % e->step;
    if (is_named(m, p->keys[one], place))
        return &p->buffers[one][place];
    if (is_named(m, p->keys[other], place))
        return &p->buffers[other][place];
    if (!is_old(p, m))
        fail(e, -EPROTO, "rank %d names a buffer that is none of this case", (int)p->rank);
    return NULL;
}

static void take_buffer_message(engine *e, peer *p, const message *m)
{
    bool asked = m->type == BUFFER_REQUEST;
    tensor_buffer *b = asked ? named_buffer(e, p, m, THEIR_REQUEST, THEIR_REPLY)
                             : named_buffer(e, p, m, OUR_REQUEST, OUR_REPLY);
    if (!b)
        return;
    if (asked) {
        grant_buffer(e, b, m->index);
        return;
    }
    if (m->type == BUFFER_RESPONSE) {
        b->address = m->address;
        b->rkey = m->rkey;
        b->asked = false;
    } else {
        b->remote_busy = false;
    }
    send_next(e, b);
}

/* ------------------------------------------------------------------ who asked */

/* The lane of what a tensor buffer holds, or NULL. */
static lane *lane_in(engine *e, peer *p, const tensor_buffer *b, message *m)
{
    if (!b->at || !read_message(b->at, m) || m->nbytes > b->room - MESSAGE_NBYTES)
        return NULL;
    lane *a = lane_of(e, p, b->flow == THEIR_REPLY, m->step);
    return a->state == OPEN && a->number == m->step && !a->in.arrived &&
                   m->nbytes <= a->in.target.nbytes ? a : NULL;
}

static void v1_take_content(engine *e, peer *p, uint32_t imm)
{
    message m;
    uint32_t place = imm / 2;
    tensor_buffer *b = &p->buffers[imm % 2 ? THEIR_REPLY : THEIR_REQUEST][place % e->step];
    lane *a = place < e->step ? lane_in(e, p, b, &m) : NULL;
    if (!a) {
        fail(e, -EPROTO, "rank %d sent a tensor that nobody asked for", (int)p->rank);
        return;
    }
    a->in.nbytes = m.nbytes;
    unlock(e);                  /* nobody else looks at this call or this buffer */
    scatter(e, &a->in.target, b->at + MESSAGE_NBYTES, m.nbytes);
    lock(e);
    add_note(conn_of_buffer(e, b), &b->note, (note){.type = BUFFER_IDLE, .buffer = b});
    arrive(e, a);
}
