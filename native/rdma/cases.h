/* prepare() and finish(). Part of engine.c. */
static void free_conn(conn *c)
{
    ring_free(&c->free);
    ring_free(&c->queue);
    ring_free(&c->order);
    free(c->afters);
    c->r->nafters -= c->after_count;
    c->afters = NULL;
    c->after_count = c->after_head = 0;
    c->active = false;
}

static int finish(void *self)
{
    rdma *r = self;
    if (!r->c)
        return 0;
    ring_bell(r);
    r->again = NULL;            /* its memory will not be registered any more */
    for (uint32_t i = 0; i < r->nactive; i++)
        drain(r->active[i]);
    release_slots(&r->regions);
    free_pool(r);
    for (uint32_t i = 0; i < r->nactive; i++)
        free_conn(r->active[i]);
    ring_free(&r->done);
    ring_free(&r->arrived);
    ring_free(&r->given);
    void *all[] = {r->active, r->flights, r->arrivals, r->cuts};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    r->active = NULL;
    r->flights = NULL;
    r->arrivals = NULL;
    r->cuts = NULL;
    r->nactive = 0;
    r->lone = NULL;
    r->c = NULL;
    return 0;
}

static int add_conn(rdma *r, uint32_t index, int32_t peer)
{
    uint32_t window = r->c->window;
    conn *c = peer >= 0 && (uint32_t)peer < r->o.size ? &r->conns[peer] : NULL;
    if (!c || !c->qp || c->active)
        return refuse(r, -EINVAL, "a peer of this case is no rank that we are connected to");
    if (c->lost)
        return refuse(r, -ECONNRESET, "rank %d is gone", (int)peer);
    r->active[r->nactive++] = c;
    c->active = true;
    c->base = index * window;
    c->after_size = 2 * window;
    c->afters = calloc((size_t)c->after_size + 1, sizeof *c->afters);
    if (!c->afters || !ring_init(&c->free, window) || !ring_init(&c->order, window) ||
        !ring_init(&c->queue, OUT_KINDS * window + 8))
        return refuse(r, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < window; i++)
        push(&c->free, i);
    return 0;
}

static int allocate(rdma *r)
{
    const cb_case *c = r->c;
    uint32_t slots = c->window * c->npeers;
    size_t buffers = 1;
    for (uint32_t i = 0; c->serves && i < slots; i++)
        buffers += c->incoming[i].n;
    r->active = calloc((size_t)c->npeers + 1, sizeof *r->active);
    r->flights = calloc((size_t)slots + 1, sizeof *r->flights);
    r->arrivals = calloc((size_t)slots + 1, sizeof *r->arrivals);
    r->cuts = calloc(buffers, sizeof *r->cuts);
    if (!r->active || !r->flights || !r->arrivals || !r->cuts || !ring_init(&r->done, slots) ||
        !ring_init(&r->arrived, slots) || !ring_init(&r->given, slots))
        return refuse(r, -ENOMEM, "out of memory");
    struct iovec *next = r->cuts;
    for (uint32_t i = 0; c->serves && i < slots; next += c->incoming[i++].n)
        r->arrivals[i].cut = next;
    return 0;
}

static int prepare(void *self, const cb_case *c)
{
    rdma *r = self;
    finish(r);
    if (!r->conns)
        return refuse(r, -EBADF, "the rdma engine is closed");
    uint64_t slots = (uint64_t)c->window * c->npeers;
    if (c->window == 0 || c->window > UINT32_MAX / (4 * OUT_KINDS) || slots > UINT32_MAX / 2 ||
        (c->serves && c->nincoming < slots))
        return refuse(r, -EINVAL, "there must be an incoming slot for each message in flight");
    r->c = c;
    int rc = allocate(r);
    for (uint32_t i = 0; rc == 0 && i < c->npeers; i++)
        rc = add_conn(r, i, c->peers[i]);
    if (rc == 0)
        rc = register_slots(&r->regions, c);
    if (rc == 0)
        rc = make_pool(r);
    if (rc == 0 && slots == 1 && !r->o.adaptive && r->o.spin)
        r->lone = r->active[0];
    if (rc < 0) {
        char why[sizeof r->error];
        memcpy(why, r->error, sizeof why);
        finish(r);
        memcpy(r->error, why, sizeof why);
    }
    return rc;
}
