/*
 * One peer and one message at a time, written out: all that stands between two messages of a ping-pong
 * is part of every round trip. Taken here is only a frame without a tail, of an exchange like the one
 * before; everything else goes the way that everything can go. Part of engine.c.
 */
#define LONE_LOOKS 64           /* in a row; then whatever else there may be gets its turn */
enum { LONE_TAKEN = 4 };        /* beside CB_COMPLETED and CB_ARRIVED */

/* 1 and its payload when the next frame is such a one. */
static inline int lone_frame(conn *c, uint32_t kind, const char **payload)
{
    rdma *r = c->r;
    int rc = 0;
    if (r->o.op != CB_RDMA_WRITE && c->came == c->head && (rc = reap_receives(r)) <= 0)
        return rc;
    if (next_frame(c) != BARE || c->heard.kind != kind || c->heard.bytes != c->heard.nbytes)
        return 0;
    rc = open_frame(c, true, payload);
    c->credited = c->heard.consumed;
    return rc < 0 ? rc : 1;
}

/* LONE_TAKEN: `in` is a request like the one before. */
static inline int lone_request(rdma *r, cb_incoming *in)
{
    conn *c = r->lone;
    arrival *a = &r->arrivals[c->base];
    const char *payload = NULL;
    if (a->state != FREE || a->in.message.nbytes != c->heard.nbytes || !a->in.wants_reply)
        return 0;
    int rc = lone_frame(c, FRAME_REQUEST, &payload);
    if (rc <= 0)
        return rc;
    scatter(r, &a->in.message, payload, a->in.message.nbytes);
    a->state = OPEN;
    *in = a->in;
    rc = release_frame(c);
    return rc < 0 ? rc : LONE_TAKEN;
}

/* LONE_TAKEN: the reply has come. */
static inline int lone_reply(rdma *r, uint64_t *reply_nbytes)
{
    conn *c = r->lone;
    flight *f = &r->flights[c->base];
    const char *payload = NULL;
    if (!f->due || !f->reply || f->reply->nbytes < c->heard.nbytes)
        return 0;
    int rc = lone_frame(c, FRAME_REPLY, &payload);
    if (rc <= 0)
        return rc;
    scatter(r, f->reply, payload, c->heard.nbytes);
    *reply_nbytes = c->heard.nbytes;
    f->busy = f->due = false;
    push(&c->free, 0);
    c->wr_proven = f->wr;
    rc = release_frame(c);
    return rc < 0 ? rc : LONE_TAKEN;
}
