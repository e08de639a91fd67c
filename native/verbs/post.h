/* Work requests, and whose turn it is. All with the lock. Part of engine.c. */
static void fail(engine *e, int code, const char *format, ...)
{
    va_list arguments;
    if (e->failed)
        return;
    va_start(arguments, format);
    vsnprintf(e->thread_error, sizeof e->thread_error, format, arguments);
    va_end(arguments);
    e->failed = code;
    pthread_cond_broadcast(&e->news);
}

#define RECEIVED (UINT64_C(1) << 63)       /* the wr_id of a receive request */

static uint64_t wr_id(const conn *c, enum cargo cargo, uint32_t lane)
{
    return (uint64_t)cargo << 60 | (uint64_t)(uint32_t)c->rank << 32 | lane;
}

static bool post_send(engine *e, conn *c, struct ibv_send_wr *w)
{
    struct ibv_send_wr *bad;
    w->send_flags = IBV_SEND_SIGNALED;
    int code = c->lost ? ECONNRESET : ibv_post_send(c->qp, w, &bad);
    if (code != 0) {
        c->lost = true;
        fail(e, -ECONNRESET, "%s takes no work request for rank %d: %s", e->name, (int)c->rank,
             strerror(code));
        return false;
    }
    c->used++;
    for (int i = 0; i < w->num_sge && w->opcode != IBV_WR_RDMA_READ; i++)
        e->sent_nbytes += w->sg_list[i].length;
    return true;
}

/* Into the peer's message buffer, at `offset`. */
static bool post_imm(engine *e, conn *c, uint32_t imm, enum cargo cargo, uint32_t offset,
                     struct ibv_sge *sge)
{
    struct ibv_send_wr w = {.wr_id = wr_id(c, cargo, 0), .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
                            .imm_data = imm, .sg_list = sge, .num_sge = sge ? 1 : 0};
    w.wr.rdma.remote_addr = c->theirs.address + offset;
    w.wr.rdma.rkey = c->theirs.rkey;
    return post_send(e, c, &w);
}

/* Entries of the send queue that anything may have. */
static uint32_t room(const engine *e, const conn *c)
{
    return c->lost ? 0 : e->o.depth - c->used - c->kept;
}

static void post_receive(engine *e, conn *c, struct ibv_sge *sge)
{
    struct ibv_recv_wr w = {.wr_id = RECEIVED | wr_id(c, 0, 0), .sg_list = sge, .num_sge = sge ? 1 : 0};
    struct ibv_recv_wr *bad;
    int code = c->lost ? 0 : ibv_post_recv(c->qp, &w, &bad);
    if (code != 0)
        fail(e, -EIO, "%s takes no receive request: %s", e->name, strerror(code));
}

/* ------------------------------------------------------------------ content */

/* The next part of it: all, or as much as the device takes. The last part of a write carries the
 * immediate data; behind the last part of a read there is room kept for what frees it. Nothing is not
 * read. */
static void post_part(engine *e, conn *c)
{
    transfer *t = c->content;
    uint64_t left = t->nbytes - t->posted, most = e->limits.max_msg_sz;
    uint32_t part = (uint32_t)(left < most ? left : most);
    bool last = part == left, reads = t->cargo == CARGO_READ;
    struct ibv_sge sge = {(uintptr_t)t->local + t->posted, part, t->lkey};
    struct ibv_send_wr w = {
        .wr_id = wr_id(c, t->cargo, t->index), .sg_list = &sge, .num_sge = part ? 1 : 0,
        .imm_data = t->imm, .opcode = reads ? IBV_WR_RDMA_READ
                                : last ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE};
    w.wr.rdma.remote_addr = t->remote + t->posted;
    w.wr.rdma.rkey = t->rkey;
    if (last)
        c->content = t->next;
    if (last && reads)
        c->kept++;
    if (reads && t->nbytes == 0) {
        transfer_done(e, c, t);
        return;
    }
    if (!post_send(e, c, &w))
        return;
    t->posted += part;
    t->flying++;
    e->flying++;
    if (last)
        count(reads ? &e->counters.reads : &e->counters.contents, 1);
}

static void add_transfer(conn *c, transfer t, transfer *at)
{
    *at = t;
    if (c->content)
        c->content_last->next = at;
    else
        c->content = at;
    c->content_last = at;
}

/* ------------------------------------------------------------------ control messages */

static conn *conn_of(engine *e, const lane *a)
{
    return &e->conns[e->peers[a->peer].rank];
}

static void add_note(conn *c, note *n, note what)
{
    *n = what;
    if (c->first)
        c->last->next = n;
    else
        c->first = n;
    c->last = n;
}

static void name_tensor(message *m, const char *key, uint64_t place)
{
    m->name_nbytes = (uint16_t)snprintf(m->name, sizeof m->name, "%s%u;0:0", key, (uint32_t)place);
}

/* v1 has in a buffer's message its size where the others have the request index. */
static message about_buffer(const peer *p, const note *n)
{
    const tensor_buffer *b = n->buffer;
    message m = {.type = (uint8_t)n->type, .step = b->place};
    name_tensor(&m, p->keys[b->flow], b->place);
    if (n->type != BUFFER_IDLE) {
        m.index = b->room;
        m.address = (uintptr_t)b->at;
        m.rkey = b->mr->rkey;
    }
    return m;
}

static message about_call(const engine *e, const note *n)
{
    const lane *a = n->of;
    const call *in = &a->in;
    message m = {.type = (uint8_t)n->type, .index = in->index, .step = a->number};
    if (in->nbytes != NO_METADATA) {
        m.nbytes = in->nbytes;
        m.data_type = DT_UINT8;
        m.address = (uintptr_t)in->to;
        m.rkey = in->mr ? in->mr->rkey : 0;
    }
    if (n->type == TENSOR_REQUEST)
        name_tensor(&m, e->peers[a->peer].keys[a->asks ? THEIR_REPLY : THEIR_REQUEST],
                    a->number % e->step);
    return m;
}

static message about_offer(const engine *e, const note *n)
{
    const offer *o = &n->of->out;
    message m = {.type = (uint8_t)n->type, .index = n->of->wish.index, .nbytes = o->nbytes,
                 .data_type = DT_UINT8, .status = e->thread_error,
                 .status_nbytes = (uint32_t)strlen(e->thread_error)};
    if (n->type == REMOTE_MEMORY_REGION) {
        m.step = o->key;
        m.address = (uintptr_t)o->from;
        m.rkey = o->mr ? o->mr->rkey : 0;
    }
    return m;
}

static void post_note(engine *e, conn *c)
{
    static const size_t counter_at[MESSAGE_TYPES] = {
        offsetof(cb_verbs_counters, metadata_updates), offsetof(cb_verbs_counters, re_requests),
        offsetof(cb_verbs_counters, tensor_requests), offsetof(cb_verbs_counters, error_statuses),
        offsetof(cb_verbs_counters, memory_regions), offsetof(cb_verbs_counters, buffer_requests),
        offsetof(cb_verbs_counters, buffer_responses), offsetof(cb_verbs_counters, buffer_idles),
        offsetof(cb_verbs_counters, contents)};
    note *n = c->first;
    message m = n->buffer ? about_buffer(&e->peers[n->buffer->peer], n)
                : n->type == TENSOR_REQUEST || n->type == TENSOR_RE_REQUEST ? about_call(e, n)
                                                                            : about_offer(e, n);
    c->first = n->next;
    struct ibv_sge sge = {(uintptr_t)c->tx, write_message(c->tx, &m), c->tx_mr->lkey};
    c->local_busy = c->remote_busy = true;
    count((uint64_t *)((char *)&e->counters + counter_at[n->type]), 1);
    post_imm(e, c, MESSAGE_IMM, CARGO_MESSAGE, 0, &sge);
}

/* v1 has ACK buffers, and a message in them; the others write nothing. */
static void post_ack(engine *e, conn *c)
{
    struct ibv_sge sge = {(uintptr_t)c->tx + ACK_AT, ACK_NBYTES, c->tx_mr->lkey};
    bool v1 = e->o.protocol == CB_VERBS_V1;
    if (v1)
        memcpy(c->tx + ACK_AT, ACK_MESSAGE, ACK_NBYTES);
    post_imm(e, c, ACK_IMM, CARGO_ACK, v1 ? ACK_AT : 0, v1 ? &sge : NULL);
    count(&e->counters.acks, 1);
}

/* What may go now: one control message at a time, and as much as the send queue takes. */
static void pump(engine *e, conn *c)
{
    for (; c->acks > 0 && room(e, c); c->acks--)
        post_ack(e, c);
    while (c->content && room(e, c) > (c->content->cargo == CARGO_READ))
        post_part(e, c);
    if (c->first && !c->local_busy && !c->remote_busy && room(e, c))
        post_note(e, c);
}
