/* What is common to the ways of a tensor: its asker has it, its owner has given it. With the lock.
 * Part of engine.c. */

/* Requests are handed on in their order: one that had to tell its size first may come later. */
static void arrive(engine *e, lane *a)
{
    peer *p = &e->peers[a->peer];
    a->in.arrived = true;
    count(&e->counters.tensors, 1);
    if (a->asks) {
        half_done(e, a);
        return;
    }
    while ((a = lane_of(e, p, false, p->arrived)), a->state == OPEN && a->number == p->arrived &&
                                                       a->in.arrived) {
        p->arrived++;
        a->state = ARRIVED;
        push(&e->arrived, a);
    }
    tell_loop(e);
}

/* It is in the registered memory that was meant for it. */
static void land(engine *e, lane *a)
{
    if (a->in.proxy) {
        unlock(e);              /* nobody else looks at this call */
        scatter(e, &a->in.target, a->in.proxy->at, a->in.nbytes);
        lock(e);
        give_block(&a->in.proxy);
    }
    arrive(e, a);
}

/* Its memory is free again. */
static void offer_done(engine *e, lane *a)
{
    give_block(&a->out.joined);
    give_block(&a->out.clone);
    a->out = (offer){0};
    if (a->asks)
        half_done(e, a);
    else
        release(e, a);
}

/* The lane whose call has this request_index, or NULL. */
static lane *called(engine *e, peer *p, uint64_t index)
{
    lane *a = &p->asks[index & (2 * e->lanes - 1)];
    return a->state == OPEN && a->in.index == index && !a->in.arrived ? a : NULL;
}

/* How long a tensor is, and where it is to be. */
static int expect(engine *e, lane *a, uint64_t nbytes)
{
    call *in = &a->in;
    give_block(&in->proxy);
    in->nbytes = nbytes;
    int rc = nbytes > in->target.nbytes ? -EMSGSIZE : make_place(e, in);
    if (rc < 0)
        fail(e, rc, "%s", rc == -EMSGSIZE ? "a message is larger than its slot" : e->region_error);
    return rc;
}

/* Whose incarnation a name has; a tensor of an earlier case is not sent any more. */
static bool is_old(const peer *p, const message *m)
{
    const char *at = strchr(m->name, ';');
    return at && strtoul(at + 1, NULL, 16) < p->meeting;
}

static bool is_named(const message *m, const char *key, uint64_t place)
{
    char name[TEXT + 32];
    int n = snprintf(name, sizeof name, "%s%llu;0:0", key, (unsigned long long)place);
    return n == m->name_nbytes && memcmp(name, m->name, (size_t)n) == 0;
}
