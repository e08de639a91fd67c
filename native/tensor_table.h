/* The local table: what is offered, and what is asked for. See tensor_ring.h. */
static lane *lane_of(engine *e, peer *p, bool asks, uint64_t number)
{
    return (asks ? p->asks : p->serves) + (number & (e->lanes - 1));
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
        ask_for(e, a);
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
