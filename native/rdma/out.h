/* Frames on their way out, and what waits for credits. Part of engine.c. */
#define LIST_MAX 256            /* segments of one frame */

static bool credit(const conn *c, uint32_t reserve)
{
    return c->sent - c->credited + reserve < c->theirs.ring_depth;
}

static uint64_t eager_max(const conn *c)
{
    uint64_t theirs = c->theirs.ring_stride - sizeof(frame_tail);
    return c->r->o.eager_max < theirs ? c->r->o.eager_max : theirs;
}

/* Registered memory of this frame, for what cannot be gathered. NULL: *rc. */
static char *staged(conn *c, uint32_t entry, int *rc)
{
    size_t stride = c->theirs.ring_stride;
    if (!c->stage)
        c->stage = make_pages(&c->r->regions, stride * c->theirs.ring_depth, &c->stage_mr, rc);
    return c->stage ? c->stage + entry * stride : NULL;
}

static int gather_inline(struct ibv_send_wr *w, struct ibv_sge *sges, const cb_iov *payload)
{
    for (uint32_t i = 0; i < payload->n; i++)
        if (payload->iov[i].iov_len)
            sges[w->num_sge++] = (struct ibv_sge){(uintptr_t)payload->iov[i].iov_base,
                                                  (uint32_t)payload->iov[i].iov_len, 0};
    w->send_flags |= IBV_SEND_INLINE;
    return 0;
}

static int gather(rdma *r, struct ibv_send_wr *w, struct ibv_sge *sges, const cb_iov *payload)
{
    int rc = 0;
    for (uint32_t i = 0; i < payload->n; i++) {
        const struct iovec *iov = &payload->iov[i];
        if (iov->iov_len == 0)
            continue;
        struct ibv_mr *mr = region_of(&r->regions, iov, &rc);
        if (!mr)
            return rc;
        sges[w->num_sge++] = (struct ibv_sge){(uintptr_t)iov->iov_base, (uint32_t)iov->iov_len,
                                              mr->lkey};
    }
    return 0;
}

static int pack(conn *c, struct ibv_send_wr *w, struct ibv_sge *sges, const cb_iov *payload,
                uint64_t nbytes)
{
    int rc = 0;
    char *stage = staged(c, c->sent & (c->theirs.ring_depth - 1), &rc), *to = stage;
    if (!stage)
        return rc;
    for (uint32_t i = 0; i < payload->n; to += payload->iov[i++].iov_len)
        if (payload->iov[i].iov_len)
            memcpy(to, payload->iov[i].iov_base, payload->iov[i].iov_len);
    sges[w->num_sge++] = (struct ibv_sge){(uintptr_t)stage, (uint32_t)nbytes, c->stage_mr->lkey};
    c->r->copied += nbytes;
    return 0;
}

static const cb_iov NOTHING = {NULL, 0, 0};

/* Whether the receiver of a frame by op=write would see that it is there, and that it has no tail. Bytes
 * of its last word that are not the payload's are UNTOUCHED(seq)'s, so never `seq`'s. */
static inline bool shows(const conn *c, const cb_iov *payload)
{
    const struct iovec *last = &payload->iov[payload->n - 1];
    uint32_t seq = c->sent + 1, word;
    const char *end = (const char *)last->iov_base + last->iov_len;
    if (last->iov_len == 0 || (uint8_t)end[-1] == LAST_BYTE(UNTOUCHED(seq)))
        return false;
    if (payload->nbytes < sizeof word)
        return true;
    if (last->iov_len < sizeof word)
        return false;
    memcpy(&word, end - sizeof word, sizeof word);
    return word != seq;
}

/* Whether the receiver knows what the tail would say, and would see that there is none: see wire.h,
 * BARE FRAMES. */
static inline bool bare(const conn *c, uint32_t kind, uint32_t slot, uint64_t nbytes, uint32_t more,
                        const cb_iov *payload)
{
    const frame_tail *before = &c->said;
    return nbytes == before->nbytes && kind == before->kind && payload->nbytes == before->bytes &&
           before->bytes > 0 && slot == next_slot(c, before->slot) && !more &&
           c->freed == next_consumed(before) && (c->r->o.op != CB_RDMA_WRITE || shows(c, payload));
}

/* Where a frame of so many bytes goes, which ends where its entry ends. */
static inline uint64_t place_of(const conn *c, uint32_t entry, uint64_t whole)
{
    return c->theirs.ring_address + (uint64_t)(entry + 1) * c->theirs.ring_stride - whole;
}

/* The last work request to this peer was a frame without a tail from the very same buffer: all but its
 * place is as it was. */
static inline bool repeats(const conn *c, const cb_iov *payload)
{
    return c->r->again == c && c->r->batched == 0 && payload->n == 1 &&
           payload->iov[0].iov_base == c->r->again_from && c->wr - c->wr_done < c->r->o.tx_depth;
}

/* 1: the payload may be changed at once. */
static inline int repeat(conn *c, uint32_t slot)
{
    struct ibv_send_wr *w = &c->r->wrs[0];
    uint32_t entry = c->sent & (c->theirs.ring_depth - 1);
    c->told = c->said.consumed = c->freed;
    c->said.slot = slot;
    c->said.seq = ++c->sent;
    w->send_flags &= ~(unsigned)IBV_SEND_SIGNALED;
    w->wr.rdma.remote_addr = place_of(c, entry, c->said.bytes);
    c->r->batching = c;
    commit(c, w, c->said.bytes, false);
    return (w->send_flags & IBV_SEND_INLINE) != 0;
}

/* A whole message for which repeat() is all that there is to do. */
static inline bool says_again(const conn *c, uint32_t kind, uint32_t slot, const cb_iov *message)
{
    return repeats(c, message) && c->queue.count == 0 && credit(c, FRAME_RESERVE) &&
           !c->r->o.adaptive && bare(c, kind, slot, message->nbytes, 0, message);
}

/* One frame; the caller has looked for credits. `listed`: its payload is no registered memory. Nothing
 * is handed over before ring_bell(). Returns 1 when the payload may be changed at once. */
static inline int frame(conn *c, uint32_t kind, uint32_t slot, uint64_t nbytes, uint32_t more,
                        const cb_iov *payload, bool listed)
{
    rdma *r = c->r;
    struct ibv_sge *sges;
    uint32_t entry = c->sent & (c->theirs.ring_depth - 1);
    bool without = bare(c, kind, slot, nbytes, more, payload);
    if (without && repeats(c, payload))
        return repeat(c, slot);
    uint64_t whole = payload->nbytes + sizeof(frame_tail);
    bool fits = payload->n < r->max_sge, in_wr = fits && whole <= r->limits.max_inline;
    int rc = make_room(c);
    if (rc < 0)
        return rc;
    struct ibv_send_wr *w = next_wr(c, &sges);
    if (in_wr)
        rc = gather_inline(w, sges, payload);
    else if (payload->nbytes > 0)
        rc = listed || !fits ? pack(c, w, sges, payload, payload->nbytes) : gather(r, w, sges, payload);
    if (rc < 0)
        return rc;
    c->said = (frame_tail){nbytes, slot, kind, (uint32_t)payload->nbytes, c->freed, more, ++c->sent};
    c->told = c->freed;
    if (without) {
        whole = payload->nbytes;
    } else {
        frame_tail *t = &c->tails[entry];
        *t = c->said;
        sges[w->num_sge++] = (struct ibv_sge){(uintptr_t)t, sizeof *t, c->tails_mr->lkey};
    }
    w->opcode = r->o.op == CB_RDMA_WRITE ? IBV_WR_RDMA_WRITE
              : r->o.op == CB_RDMA_WRITE_IMM ? IBV_WR_RDMA_WRITE_WITH_IMM
              : without ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND;
    w->imm_data = without;
    w->wr.rdma.remote_addr = place_of(c, entry, whole);
    w->wr.rdma.rkey = c->theirs.ring_rkey;
    if (without && fits && !listed && payload->n == 1 && r->batched == 0) {
        r->again = c;
        r->again_from = payload->iov[0].iov_base;
    }
    commit(c, w, whole, false);
    return in_wr || listed || !fits;
}

/* ------------------------------------------------------------------ lists of segments */

static int list_segments(rdma *r, wire_cursor from, segment *to, uint32_t max, uint64_t *nbytes)
{
    uint32_t n = 0;
    int rc = 0;
    while (from.left > 0) {
        wire_cursor next = from;
        struct iovec piece = wire_step(&next, next.left);
        struct ibv_mr *mr = piece.iov_len ? region_of(&r->regions, &piece, &rc) : NULL;
        uint64_t address = (uintptr_t)piece.iov_base;
        if (piece.iov_len && !mr)
            return rc;
        if (piece.iov_len && n > 0 && to[n - 1].address + to[n - 1].nbytes == address &&
            to[n - 1].rkey == mr->rkey)
            to[n - 1].nbytes += piece.iov_len;
        else if (piece.iov_len && n == max)
            break;
        else if (piece.iov_len)
            to[n++] = (segment){address, piece.iov_len, mr->rkey, 0};
        *nbytes += piece.iov_len;
        from = next;
    }
    return (int)n;
}

/* Frames with the segments of the first `nbytes` of a message, from byte *told on. -EAGAIN: credits. */
static int announce(conn *c, uint32_t kind, uint32_t slot, const cb_iov *message, uint64_t nbytes,
                    uint64_t *told)
{
    segment list[LIST_MAX];
    uint32_t max = (uint32_t)((c->theirs.ring_stride - sizeof(frame_tail)) / sizeof *list);
    while (*told < nbytes) {
        uint64_t more = 0;
        if (!credit(c, FRAME_RESERVE))
            return -EAGAIN;
        int n = list_segments(c->r, wire_at(message, *told, nbytes), list,
                              max < LIST_MAX ? max : LIST_MAX, &more);
        if (n < 0)
            return n;
        struct iovec one = {list, (size_t)n * sizeof *list};
        cb_iov payload = {&one, 1, one.iov_len};
        int rc = frame(c, kind, slot, nbytes, *told + more < nbytes, &payload, true);
        if (rc < 0)
            return rc;
        *told += more;
        if ((rc = ring_bell(c->r)) < 0) /* `list` may be in the work request itself */
            return rc;
    }
    return 0;
}

/* ------------------------------------------------------------------ one thing to send */

static void finish_flight(conn *c, uint32_t slot)
{
    flight *f = flight_at(c, slot);
    f->due = false;
    if (f->since)
        learn(&c->adapter, f->request->nbytes, f->way, (double)(now_ns() - f->since));
    push(&c->r->done, c->base + slot);
}

static enum way way_of_request(conn *c, uint64_t nbytes)
{
    if (c->r->o.adaptive)
        return choose(&c->adapter, nbytes, eager_max(c));
    return nbytes > eager_max(c) ? RENDEZVOUS : EAGER;
}

/* Who asked has learnt what is faster for messages of this size. */
static enum way way_of_answer(const conn *c, uint64_t nbytes)
{
    if (nbytes > eager_max(c))
        return RENDEZVOUS;
    return c->r->o.adaptive && nbytes > 0 && c->announced[class_of(nbytes)] ? RENDEZVOUS : EAGER;
}

static int send_request(conn *c, uint32_t slot)
{
    flight *f = flight_at(c, slot);
    uint64_t nbytes = f->request->nbytes;
    bool eager = f->way == EAGER;
    uint32_t way = f->reply ? 0 : FRAME_ONE_WAY - FRAME_REQUEST;
    int rc;
    if (eager)
        rc = frame(c, FRAME_REQUEST + way, slot, nbytes, 0, f->request, false);
    else if (c->r->o.op == CB_RDMA_READ)
        rc = announce(c, FRAME_RTS_REQUEST + way, slot, f->request, nbytes, &f->moved);
    else
        rc = frame(c, FRAME_RTS_REQUEST + way, slot, nbytes, 0, &NOTHING, false);
    if (rc < 0)
        return rc;
    f->wr = c->wr;
    if (f->reply)
        c->wr_replied = c->wr;
    else if (eager && rc == 1)
        finish_flight(c, slot);
    else if (eager)
        after_wr(c, AFTER_DONE, slot);
    return 0;
}

static int send_answer(conn *c, uint32_t slot)
{
    arrival *a = arrival_at(c, slot);
    int rc;
    if (a->way == EAGER) {
        rc = frame(c, FRAME_REPLY, slot, a->answer.nbytes, 0, &a->answer, false);
        a->state = FREE;        /* a request into this slot says that the answer is there */
    } else if (c->r->o.op == CB_RDMA_READ) {
        rc = announce(c, FRAME_RTS_REPLY, slot, &a->answer, a->answer.nbytes, &a->moved);
    } else {
        rc = frame(c, FRAME_RTS_REPLY, slot, a->answer.nbytes, 0, &NOTHING, false);
    }
    return rc;
}

/* The end of a rendezvous: by reading, at its receiver; by writing, at its sender. */
static int send_fin(conn *c, uint32_t kind, uint32_t slot)
{
    int rc = frame(c, kind, slot, 0, 0, &NOTHING, false);
    if (rc < 0 || c->r->o.op == CB_RDMA_READ)
        return rc;
    if (kind == FRAME_FIN_REPLY)
        arrival_at(c, slot)->state = FREE;
    else if (!flight_at(c, slot)->reply)
        after_wr(c, AFTER_DONE, slot);
    return 0;
}

static inline int send_out(conn *c, enum out_kind kind, uint32_t slot)
{
    if (!credit(c, FRAME_RESERVE))
        return -EAGAIN;
    switch (kind) {
    case OUT_REQUEST:
        return send_request(c, slot);
    case OUT_ANSWER:
        return send_answer(c, slot);
    case OUT_CTS_REQUEST: {
        arrival *a = arrival_at(c, slot);
        return announce(c, FRAME_CTS_REQUEST, slot, &c->r->c->incoming[c->base + slot],
                        a->in.message.nbytes, &a->landed);
    }
    case OUT_CTS_REPLY: {
        flight *f = flight_at(c, slot);
        return announce(c, FRAME_CTS_REPLY, slot, f->reply, f->reply_nbytes, &f->landed);
    }
    case OUT_FIN_REQUEST:
        return send_fin(c, FRAME_FIN_REQUEST, slot);
    case OUT_FIN_REPLY:
        return send_fin(c, FRAME_FIN_REPLY, slot);
    default:
        return frame(c, FRAME_SETTLE, 0, 0, 0, &NOTHING, false);
    }
}

/* In their order, as far as credits go. */
static int flush(conn *c)
{
    while (c->queue.count > 0) {
        uint32_t item = c->queue.at[c->queue.head];
        int rc = send_out(c, item % OUT_KINDS, item / OUT_KINDS);
        if (rc == -EAGAIN)
            break;
        if (rc < 0)
            return rc;
        pop(&c->queue);
    }
    return ring_bell(c->r);
}

static inline void enqueue(conn *c, enum out_kind kind, uint32_t slot)
{
    push(&c->queue, slot * OUT_KINDS + kind);
}

/* At once, unless something else waits for credits or this must. */
static inline int send_or_wait(conn *c, enum out_kind kind, uint32_t slot)
{
    int rc = c->queue.count == 0 ? send_out(c, kind, slot) : -EAGAIN;
    if (rc != -EAGAIN)
        return rc < 0 ? rc : ring_bell(c->r);
    enqueue(c, kind, slot);
    return flush(c);
}

static inline int return_credits(conn *c)
{
    if (__builtin_expect(c->freed - c->told < c->r->depth / 2, 1) || !credit(c, 0))
        return 0;
    int rc = frame(c, FRAME_CREDIT, 0, 0, 0, &NOTHING, false);
    return rc < 0 ? rc : ring_bell(c->r);
}

/* Called when completions came: posts nothing, or completions could come within. */
static void run_afters(conn *c)
{
    while (c->after_count > 0) {
        after *e = &c->afters[c->after_head];
        if (e->wr > c->wr_done && (e->kind != AFTER_DONE || e->wr > c->wr_proven))
            break;
        after now = *e;
        c->after_head = c->after_head + 1 < c->after_size ? c->after_head + 1 : 0;
        c->after_count--;
        c->r->nafters--;
        if (now.kind == AFTER_DONE) {
            finish_flight(c, now.slot);
        } else if (now.kind == AFTER_READ_REPLY) {
            enqueue(c, OUT_FIN_REPLY, now.slot);
            finish_flight(c, now.slot);
        } else {
            enqueue(c, OUT_FIN_REQUEST, now.slot);
            arrival_at(c, now.slot)->state = COMPLETE;
            deliver(c);
        }
    }
}
