/*
 * Runs of small buffers become one, in a pool that is registered for the whole case, so that a message
 * takes fewer scatter/gather entries and a rendezvous lists fewer segments. Part of engine.c, for ar-grpc.
 */
static uint64_t small_nbytes(const rdma *r, const cb_iov *message)
{
    uint64_t nbytes = 0;
    for (uint32_t i = 0; i < message->n; i++)
        nbytes += message->iov[i].iov_len <= r->o.coalesce ? message->iov[i].iov_len : 0;
    return nbytes;
}

static void grow(const rdma *r, const cb_iov *slots, uint32_t nslots, uint64_t *block, uint32_t *n)
{
    for (uint32_t i = 0; i < nslots; i++) {
        uint64_t nbytes = small_nbytes(r, &slots[i]);
        *block = nbytes > *block ? nbytes : *block;
        *n = slots[i].n > *n ? slots[i].n : *n;
    }
}

/* A block for each request and each answer in flight, as large as the slots of this case need. */
static int make_pool(rdma *r)
{
    const cb_case *c = r->c;
    pool *p = &r->pool;
    uint64_t slots = (uint64_t)c->window * c->npeers;
    int rc = 0;
    grow(r, c->request, c->nrequest, &p->block, &p->most);
    grow(r, c->incoming, c->nincoming, &p->block, &p->most);
    if (!r->o.coalesce || slots == 0 || p->most < 2 || p->block == 0) {
        p->block = 0;
        return 0;
    }
    p->nbytes = 2 * slots * p->block;
    p->iov = calloc(2 * slots * p->most, sizeof *p->iov);
    if (!p->iov)
        return refuse(r, -ENOMEM, "out of memory");
    struct ibv_mr *mr = NULL;
    if (!(p->pages = make_pages(&r->regions, p->nbytes, &mr, &rc)))
        return rc;
    r->regions.at[r->regions.count++] =
        (region){(uintptr_t)p->pages, (uintptr_t)p->pages + p->nbytes, mr};
    return 0;
}

/* After release_slots(). */
static void free_pool(rdma *r)
{
    if (r->pool.pages)
        munmap(r->pool.pages, r->pool.nbytes);
    free(r->pool.iov);
    r->pool = (pool){0};
}

static bool is_small(const rdma *r, const cb_iov *m, uint32_t i)
{
    return i < m->n && m->iov[i].iov_len <= r->o.coalesce;
}

/* The message with its runs of small buffers in block number `at`; as it is when it has none. */
static cb_iov coalesce(rdma *r, uint64_t at, const cb_iov *m)
{
    const pool *p = &r->pool;
    if (p->block == 0 || m->n < 2 || m->n > p->most || small_nbytes(r, m) > p->block)
        return *m;
    char *to = p->pages + at * p->block;
    cb_iov made = {p->iov + at * p->most, 0, m->nbytes};
    struct iovec *iov = p->iov + at * p->most;
    for (uint32_t i = 0; i < m->n; i++) {
        iov[made.n] = m->iov[i];
        if (is_small(r, m, i) && is_small(r, m, i + 1)) {
            iov[made.n] = (struct iovec){to, 0};
            for (; is_small(r, m, i); i++) {
                if (m->iov[i].iov_len)
                    memcpy(to, m->iov[i].iov_base, m->iov[i].iov_len);
                to += m->iov[i].iov_len;
                iov[made.n].iov_len += m->iov[i].iov_len;
            }
            r->copied += iov[made.n].iov_len;
            i--;
        }
        made.n++;
    }
    return made;
}
