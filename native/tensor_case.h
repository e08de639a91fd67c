/* Peers, lanes and slots of a case. See tensor_ring.h; the engine has make_keys(), too. */
static uint32_t lanes_for(uint32_t window)
{
    uint32_t lanes = 1;
    while (window > 1 && lanes < 4 * window && lanes < MOST_LANES)
        lanes *= 2;
    return lanes;
}

static bool make_peer(engine *e, const cb_case *c, uint32_t at)
{
    peer *p = &e->peers[at];
    p->rank = c->peers[at];
    p->asks = e->all + (size_t)at * 2 * e->lanes;
    p->serves = p->asks + e->lanes;
    for (uint32_t i = 0; i < 2 * e->lanes; i++) {
        p->asks[i].peer = at;
        p->asks[i].asks = i < e->lanes;
    }
    e->index_of[p->rank] = (int32_t)at;
    make_keys(e, p);
    if (!c->serves)
        return true;
    p->free_slots = calloc(c->window, sizeof *p->free_slots);
    for (uint32_t i = 0; p->free_slots && i < c->window; i++)     /* a stack whose top is the first */
        p->free_slots[p->nfree++] = at * c->window + (c->window - 1 - i);
    return p->free_slots != NULL;
}

static bool make_peers(engine *e, const cb_case *c)
{
    e->nranks = 0;
    for (uint32_t i = 0; i < c->npeers; i++)
        if (c->peers[i] >= e->nranks)
            e->nranks = c->peers[i] + 1;
    e->index_of = malloc(((size_t)e->nranks + 1) * sizeof *e->index_of);
    e->peers = calloc(c->npeers + 1, sizeof *e->peers);
    if (!e->index_of || !e->peers)
        return false;
    memset(e->index_of, 0xff, (size_t)e->nranks * sizeof *e->index_of);
    while (e->nmeetings < (uint32_t)e->nranks) {
        uint32_t *more = realloc(e->meetings, (e->nmeetings + 1) * sizeof *more);
        if (!more)
            return false;
        e->meetings = more;
        e->meetings[e->nmeetings++] = 0;
    }
    for (uint32_t i = 0; i < c->npeers; i++)
        if (!make_peer(e, c, i))
            return false;
    return true;
}

static bool make_cuts(engine *e, const cb_case *c)
{
    e->ncut = c->serves ? c->npeers * c->window : 0;
    e->cut = calloc(e->ncut + 1, sizeof *e->cut);
    for (uint32_t i = 0; e->cut && i < e->ncut; i++)
        if (!(e->cut[i] = calloc(c->incoming[i].n + 1, sizeof **e->cut)))
            return false;
    return e->cut != NULL;
}

static int check_sizes(engine *e, const cb_iov *slots, uint32_t n, uint64_t *largest)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        rc = check_size(e, slots[i].nbytes);
        if (slots[i].nbytes > *largest)
            *largest = slots[i].nbytes;
    }
    return rc;
}

static int check_case(engine *e, const cb_case *c)
{
    uint64_t sent = 0;
    e->largest = 0;
    if (c->struct_size < sizeof *c)
        return refuse(e, -EPROTO, "the case was made for an older version of the ABI");
    if (c->window == 0 || 4 * (uint64_t)c->window > MOST_LANES)
        return refuse(e, -EINVAL, CHANNEL " takes a window of 1 to 16384");
    if (c->serves && c->nincoming < c->window * c->npeers)
        return refuse(e, -EINVAL, "an incoming slot is needed for each message in flight");
    int rc = check_sizes(e, c->request, c->nrequest, &sent);
    if (rc == 0)
        rc = check_sizes(e, c->reply, c->nreply, &e->largest);
    if (rc == 0)
        rc = check_sizes(e, c->incoming, c->nincoming, &e->largest);
    return rc == 0 && c->serves ? check_size(e, c->answer_nbytes) : rc;
}

/* What the functions above have made. */
static void free_exchanges(engine *e)
{
    for (uint32_t i = 0; e->peers && i < e->c->npeers; i++)
        free(e->peers[i].free_slots);
    for (uint32_t i = 0; e->cut && i < e->ncut; i++)
        free(e->cut[i]);
    void *all[] = {e->peers, e->index_of, e->all, e->cut};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    e->peers = NULL, e->index_of = NULL, e->all = NULL, e->cut = NULL;
}

static bool make_ring(ring *r, uint32_t nlanes)
{
    *r = (ring){calloc(nlanes + 1, sizeof(lane *)), nlanes, 0, 0};
    return r->at != NULL;
}

static void free_ring(ring *r)
{
    free(r->at);
    *r = (ring){0};
}
