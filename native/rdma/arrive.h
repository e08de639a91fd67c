/* Frames that came in. Part of engine.c. */
static WIRE_SLOW int nonsense(conn *c, const frame_tail *t)
{
    return refuse(c->r, -EPROTO, "rank %d sent a frame of kind %u that is none of this case",
                  (int)c->peer, t->kind);
}

static WIRE_SLOW int too_long(conn *c, const frame_tail *t, uint64_t room)
{
    return refuse(c->r, -EPROTO, "rank %d sent a message of %llu bytes where %llu are the most",
                  (int)c->peer, (unsigned long long)t->nbytes, (unsigned long long)room);
}

/* The first nbytes of a slot; the slot itself when that is all of it. */
static inline cb_iov cut(const cb_iov *slot, struct iovec *iov, uint64_t nbytes)
{
    uint64_t left = nbytes;
    if (nbytes == slot->nbytes)
        return *slot;
    for (uint32_t i = 0; i < slot->n; i++) {
        size_t part = slot->iov[i].iov_len < left ? slot->iov[i].iov_len : left;
        iov[i] = (struct iovec){slot->iov[i].iov_base, part};
        left -= part;
    }
    return (cb_iov){iov, slot->n, nbytes};
}

static inline void scatter(rdma *r, const cb_iov *to, const char *from, uint64_t nbytes)
{
    r->copied += nbytes;
    if (nbytes > 0 && to->iov[0].iov_len >= nbytes) {
        memcpy(to->iov[0].iov_base, from, nbytes);
        return;
    }
    wire_cursor here = wire_at(to, 0, nbytes);
    wire_scatter(&here, from, nbytes);
}

/* ------------------------------------------------------------------ requests */

/* Room for a request; -EAGAIN: its slot still has the one before. */
static inline int begin_request(conn *c, const frame_tail *t, bool one_way, arrival **made)
{
    rdma *r = c->r;
    if (!r->c->serves || t->slot >= r->c->window)
        return nonsense(c, t);
    arrival *a = *made = arrival_at(c, t->slot);
    if (a->state != FREE)
        return -EAGAIN;
    const cb_iov *room = &r->c->incoming[c->base + t->slot];
    if (t->nbytes > room->nbytes)
        return too_long(c, t, room->nbytes);
    a->in = (cb_incoming){c->base + t->slot, c->peer, !one_way, cut(room, a->cut, t->nbytes)};
    c->announced[class_of(t->nbytes)] = t->kind != FRAME_REQUEST && t->kind != FRAME_ONE_WAY;
    return 0;
}

static int take_request(conn *c, const frame_tail *t, const char *payload)
{
    arrival *a = NULL;
    if (t->bytes != t->nbytes)
        return nonsense(c, t);
    int rc = begin_request(c, t, t->kind == FRAME_ONE_WAY, &a);
    if (rc < 0)
        return rc;
    scatter(c->r, &a->in.message, payload, t->nbytes);
    if (c->order.count == 0) {
        hand_out(c, t->slot);
    } else {
        a->state = COMPLETE;
        push(&c->order, t->slot);
    }
    return 0;
}

static int read_segments(conn *c, const frame_tail *t, const char *payload, const cb_iov *to,
                         uint64_t *landed)
{
    for (uint32_t at = 0; at + sizeof(segment) <= t->bytes; at += sizeof(segment)) {
        segment s;
        memcpy(&s, payload + at, sizeof s);
        if (s.nbytes > t->nbytes - *landed)
            return nonsense(c, t);
        int rc = move(c, IBV_WR_RDMA_READ, wire_at(to, *landed, *landed + s.nbytes), &s);
        if (rc < 0)
            return rc;
        *landed += s.nbytes;
    }
    return ring_bell(c->r);
}

static int take_rts_request(conn *c, const frame_tail *t, const char *payload)
{
    bool reads = c->r->o.op == CB_RDMA_READ;
    arrival *a = t->slot < c->r->c->window && c->r->c->serves ? arrival_at(c, t->slot) : NULL;
    int rc = 0;
    if (!a || a->state != COMING || a->landed == 0)
        rc = begin_request(c, t, t->kind == FRAME_RTS_ONE_WAY, &a);
    if (rc < 0)
        return rc;
    if (a->state == FREE) {
        a->moved = a->landed = 0;
        push(&c->order, t->slot);
    }
    a->state = COMING;
    if (!reads) {
        enqueue(c, OUT_CTS_REQUEST, t->slot);
        return 0;
    }
    if (t->nbytes != a->in.message.nbytes)
        return nonsense(c, t);
    rc = read_segments(c, t, payload, &a->in.message, &a->landed);
    if (rc == 0 && !t->more && a->landed != t->nbytes)
        return nonsense(c, t);
    if (rc == 0 && a->landed == t->nbytes)
        after_wr(c, AFTER_READ_REQUEST, t->slot);
    return rc;
}

/* ------------------------------------------------------------------ replies */

static inline flight *reply_to(conn *c, const frame_tail *t)
{
    rdma *r = c->r;
    flight *f = r->c->asks && t->slot < r->c->window ? flight_at(c, t->slot) : NULL;
    return f && f->due && f->reply ? f : NULL;
}

/* What was posted up to this flight's request has arrived: it has been answered. */
static inline void prove(conn *c, const flight *f)
{
    if (f->wr <= c->wr_proven)
        return;
    c->wr_proven = f->wr;
    if (c->after_count > 0)
        run_afters(c);
}

static int take_reply(conn *c, const frame_tail *t, const char *payload)
{
    flight *f = reply_to(c, t);
    if (!f || t->bytes != t->nbytes)
        return nonsense(c, t);
    if (t->nbytes > f->reply->nbytes)
        return too_long(c, t, f->reply->nbytes);
    scatter(c->r, f->reply, payload, t->nbytes);
    f->reply_nbytes = t->nbytes;
    prove(c, f);
    finish_flight(c, t->slot);
    return 0;
}

static int take_rts_reply(conn *c, const frame_tail *t, const char *payload)
{
    flight *f = reply_to(c, t);
    if (!f || (f->reply_nbytes > 0 && (f->landed == 0 || t->nbytes != f->reply_nbytes)))
        return nonsense(c, t);
    if (t->nbytes > f->reply->nbytes)
        return too_long(c, t, f->reply->nbytes);
    f->reply_nbytes = t->nbytes;
    prove(c, f);
    if (c->r->o.op != CB_RDMA_READ) {
        enqueue(c, OUT_CTS_REPLY, t->slot);
        return 0;
    }
    int rc = read_segments(c, t, payload, f->reply, &f->landed);
    if (rc == 0 && !t->more && f->landed != t->nbytes)
        return nonsense(c, t);
    if (rc == 0 && f->landed == t->nbytes)
        after_wr(c, AFTER_READ_REPLY, t->slot);
    return rc;
}

/* ------------------------------------------------------------------ rendezvous */

static int write_segments(conn *c, const frame_tail *t, const char *payload, const cb_iov *from,
                          uint64_t *moved)
{
    for (uint32_t at = 0; at + sizeof(segment) <= t->bytes; at += sizeof(segment)) {
        segment s;
        memcpy(&s, payload + at, sizeof s);
        if (s.nbytes > from->nbytes - *moved)
            return nonsense(c, t);
        int rc = move(c, IBV_WR_RDMA_WRITE, wire_at(from, *moved, *moved + s.nbytes), &s);
        if (rc < 0)
            return rc;
        *moved += s.nbytes;
    }
    return 0;
}

static int take_cts(conn *c, const frame_tail *t, const char *payload)
{
    rdma *r = c->r;
    bool request = t->kind == FRAME_CTS_REQUEST;
    if (t->slot >= r->c->window || r->o.op == CB_RDMA_READ)
        return nonsense(c, t);
    if (request ? !r->c->asks || !flight_at(c, t->slot)->busy
                : !r->c->serves || arrival_at(c, t->slot)->state != OPEN)
        return nonsense(c, t);
    const cb_iov *from = request ? flight_at(c, t->slot)->request : &arrival_at(c, t->slot)->answer;
    uint64_t *moved = request ? &flight_at(c, t->slot)->moved : &arrival_at(c, t->slot)->moved;
    if (*moved >= from->nbytes)
        return nonsense(c, t);
    int rc = write_segments(c, t, payload, from, moved);
    if (rc == 0 && *moved == from->nbytes)
        enqueue(c, request ? OUT_FIN_REQUEST : OUT_FIN_REPLY, t->slot);
    return rc;
}

static int take_fin(conn *c, const frame_tail *t)
{
    rdma *r = c->r;
    bool request = t->kind == FRAME_FIN_REQUEST, reads = r->o.op == CB_RDMA_READ;
    if (t->slot >= r->c->window || !(request == reads ? r->c->asks : r->c->serves))
        return nonsense(c, t);
    if (request && reads) {     /* ours has been read */
        flight *f = flight_at(c, t->slot);
        r->bytes_sent += f->busy ? f->request->nbytes : 0;
        if (f->due && !f->reply)
            finish_flight(c, t->slot);
    } else if (request) {
        if (arrival_at(c, t->slot)->state != COMING)
            return nonsense(c, t);
        arrival_at(c, t->slot)->state = COMPLETE;
        deliver(c);
    } else if (reads) {
        r->bytes_sent += arrival_at(c, t->slot)->answer.nbytes;
        arrival_at(c, t->slot)->state = FREE;
    } else {
        if (!reply_to(c, t))
            return nonsense(c, t);
        finish_flight(c, t->slot);
    }
    return 0;
}

/* ------------------------------------------------------------------ one frame after another */

static inline int take(conn *c, const frame_tail *t, const char *payload)
{
    if (t->kind == FRAME_REPLY)         /* no jump through a table for what counts */
        return take_reply(c, t, payload);
    if (t->kind == FRAME_REQUEST || t->kind == FRAME_ONE_WAY)
        return take_request(c, t, payload);
    switch (t->kind) {
    case FRAME_RTS_REQUEST:
    case FRAME_RTS_ONE_WAY:
        return take_rts_request(c, t, payload);
    case FRAME_RTS_REPLY:
        return take_rts_reply(c, t, payload);
    case FRAME_CTS_REQUEST:
    case FRAME_CTS_REPLY:
        return take_cts(c, t, payload);
    case FRAME_FIN_REQUEST:
    case FRAME_FIN_REPLY:
        return take_fin(c, t);
    case FRAME_SETTLE:
        c->settled++;
        return 0;
    case FRAME_CREDIT:
        return 0;
    default:
        return nonsense(c, t);
    }
}

enum presence { ABSENT, WHOLE, BARE };

static inline enum presence next_frame(const conn *c)
{
    const rdma *r = c->r;
    uint32_t frame = c->head & (r->depth - 1), seq = c->head + 1;
    if (r->o.op != CB_RDMA_WRITE)
        return c->came == c->head ? ABSENT : c->bare[frame] ? BARE : WHOLE;
    uint32_t word = __atomic_load_n(last_word(c, frame), __ATOMIC_ACQUIRE);
    return word == seq ? WHOLE : LAST_BYTE(word) == LAST_BYTE(UNTOUCHED(seq)) ? ABSENT : BARE;
}

static WIRE_SLOW int out_of_step(conn *c)
{
    return refuse(c->r, -EPROTO, "rank %d sent something that is no frame", (int)c->peer);
}

/* What the frame that is there says, into c->heard, and its payload. A frame that could not be taken is
 * opened again. */
static inline int open_frame(conn *c, bool is_bare, const char **payload)
{
    const rdma *r = c->r;
    frame_tail *t = &c->heard;
    uint32_t frame = c->head & (r->depth - 1), tail = is_bare ? 0 : sizeof *t;
    uint32_t length = r->stride, place = frame;
    if (r->o.op == CB_RDMA_SEND || r->o.op == CB_RDMA_READ) {
        length = c->length[frame];
        place = r->srq ? c->entry[frame] : frame;
    }
    const char *end = c->ring + (size_t)place * r->stride + length;
    if (length < tail)
        return out_of_step(c);
    if (!is_bare) {
        memcpy(t, end - tail, sizeof *t);
    } else if (t->seq == c->head) {
        t->slot = next_slot(c, t->slot);
        t->consumed = next_consumed(t);
        t->seq++;
    }
    if (t->seq != c->head + 1 || t->bytes > length - tail || (is_bare && (t->bytes == 0 || t->more)))
        return out_of_step(c);
    *payload = end - tail - t->bytes;
    return 0;
}

/* Entries of frames that were taken are the peer's again. */
static inline int free_entries(conn *c)
{
    int rc = 0;
    for (; rc == 0 && c->freed != c->head; c->freed++)
        rc = post_again(c, c->freed & (c->r->depth - 1));
    return rc;
}

/* A receive request is posted again when there is nothing else to do, or when many wait: an answer
 * should not wait for that. */
static inline int release_frame(conn *c)
{
    uint32_t depth = c->r->depth;
    if (c->r->o.op == CB_RDMA_WRITE) {
        mark_untouched(c, c->head + 1 + depth);
        c->freed++;
    }
    c->head++;
    return c->head - c->freed < depth / 4 ? 0 : free_entries(c);
}

/* Takes what came; how many frames. */
static inline int look(conn *c)
{
    enum presence there;
    int n = 0;
    for (; (there = next_frame(c)) != ABSENT; n++) {
        const char *payload = NULL;
        int rc = open_frame(c, there == BARE, &payload);
        if (rc < 0)
            return rc;
        c->credited = c->heard.consumed;
        rc = take(c, &c->heard, payload);
        if (rc == -EAGAIN)
            break;
        if (rc == 0)
            rc = release_frame(c);
        if (rc < 0)
            return rc;
    }
    if (n == 0 && c->queue.count == 0)
        return 0;
    int rc = c->queue.count > 0 || c->r->batched > 0 ? flush(c) : 0;
    if (rc == 0)
        rc = return_credits(c);
    return rc < 0 ? rc : n;
}

/* What could wait until nothing came. */
static inline int tidy(conn *c)
{
    if (c->freed == c->head)
        return 0;
    int rc = free_entries(c);
    return rc == 0 ? return_credits(c) : rc;
}
