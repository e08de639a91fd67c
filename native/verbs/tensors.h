/* A tensor between application memory and the device. Part of engine.c. */
static int check_size(engine *e, uint64_t nbytes)
{
    (void)e;
    (void)nbytes;
    return 0;                   /* the device's limit is kept by several work requests */
}

static int forward(engine *e, int rc)
{
    return refuse(e, rc, e->region_error);
}

/* Registered memory of ours that is not in use, or more of it. With the lock. */
static block *take_block(engine *e, uint64_t nbytes, int *rc)
{
    block *best = NULL;
    for (block *b = e->blocks; b; b = b->next)
        if (!b->busy && b->room >= nbytes && (!best || b->room < best->room))
            best = b;
    if (!best && (best = calloc(1, sizeof *best))) {
        best->room = (nbytes + 4095) / 4096 * 4096;
        best->at = make_pages(&e->regions, best->room, &best->mr, rc);
        if (!best->at) {
            free(best);
            return NULL;
        }
        best->next = e->blocks;
        e->blocks = best;
    }
    if (best)
        best->busy = true;
    else
        *rc = -ENOMEM;
    return best;
}

static void give_block(block **b)
{
    if (*b)
        (*b)->busy = false;
    *b = NULL;
}

static void free_blocks(engine *e)
{
    while (e->blocks) {
        block *b = e->blocks;
        e->blocks = b->next;
        ibv_dereg_mr(b->mr);
        munmap(b->at, b->room);
        free(b);
    }
}

/* One buffer is sent from where it is; several are one tensor, so they are joined. v1 copies it from
 * there into its tensor buffer. */
static int make_offer(engine *e, offer *o, const cb_iov *m)
{
    int rc = 0;
    *o = (offer){.put = true, .nbytes = m->nbytes};
    if (m->nbytes == 0)
        return 0;
    lock(e);
    if (m->n != 1)
        o->joined = take_block(e, m->nbytes, &rc);
    else if (e->o.protocol != CB_VERBS_V1)
        o->mr = region_of(&e->regions, m->iov, &rc);
    unlock(e);
    if (rc < 0)
        return forward(e, rc);
    o->from = m->iov->iov_base;
    if (o->joined) {
        o->from = o->joined->at;
        o->mr = o->joined->mr;
        gather(e, o->from, m);
    }
    return 0;
}

/* ------------------------------------------------------------------ asking; with the lock */

static uint64_t *known_of(engine *e, const lane *a)
{
    return &e->peers[a->peer].known[a->asks][a->number % e->step];
}

/* Where it is to come to: the application's buffer, if it is one. */
static int make_place(engine *e, call *in)
{
    int rc = 0;
    in->to = NULL;
    in->mr = NULL;
    if (in->nbytes == 0)
        return 0;
    if (in->target.n == 1) {
        in->to = in->target.iov->iov_base;
        in->mr = region_of(&e->regions, in->target.iov, &rc);
        return rc;
    }
    if (!(in->proxy = take_block(e, in->nbytes, &rc)))
        return rc;
    in->to = in->proxy->at;
    in->mr = in->proxy->mr;
    return 0;
}

/* A number that finds this lane again. */
static uint32_t new_index(engine *e, const lane *a)
{
    uint32_t of_peer = (uint32_t)(a - e->peers[a->peer].asks);
    return (e->serial++ * 2 * e->lanes | of_peer) & INDEX_MASK;
}

static void ask_for(engine *e, lane *a)
{
    conn *c = conn_of(e, a);
    call *in = &a->in;
    in->index = new_index(e, a);
    in->nbytes = e->o.protocol == CB_VERBS_V2 ? *known_of(e, a) : NO_METADATA;
    if (in->nbytes != NO_METADATA && in->nbytes > in->target.nbytes)
        in->nbytes = NO_METADATA;
    int rc = in->nbytes == NO_METADATA ? 0 : make_place(e, in);
    if (rc < 0)
        fail(e, rc, "%s", e->region_error);
    add_note(c, &a->in_note, (note){.type = TENSOR_REQUEST, .of = a});
    pump(e, c);
}
