/* Registered memory: the slots of a case, each page once. Part of engine.c. */
enum { ACCESS = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ };

static WIRE_SLOW int cannot_register(rdma *r, size_t nbytes, int code)
{
    struct rlimit limit = {0};
    if (code != ENOMEM && code != EAGAIN && code != EPERM)
        return refuse(r, -code, "%zu bytes cannot be registered on %s: %s", nbytes, r->o.device,
                      strerror(code));
    getrlimit(RLIMIT_MEMLOCK, &limit);
    return refuse(r, -code, "%zu bytes cannot be registered on %s: %s; the limit of locked memory "
                  "is %lld KiB: raise it (ulimit -l unlimited; memlock in "
                  "/etc/security/limits.conf; LimitMEMLOCK of slurmd)", nbytes, r->o.device,
                  strerror(code), limit.rlim_cur == RLIM_INFINITY
                  ? -1LL : (long long)(limit.rlim_cur / 1024));
}

static struct ibv_mr *pin(rdma *r, void *from, size_t nbytes, int *rc)
{
    struct ibv_mr *mr = ibv_reg_mr(r->pd, from, nbytes, ACCESS);
    *rc = mr ? 0 : cannot_register(r, nbytes, errno);
    return mr;
}

/* Zeroed pages of the engine's own. */
static void *make_pages(rdma *r, size_t nbytes, struct ibv_mr **mr, int *rc)
{
    void *pages = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        *rc = refuse(r, -ENOMEM, "%zu bytes for frames cannot be had", nbytes);
        return NULL;
    }
    *mr = pin(r, pages, nbytes, rc);
    if (*mr)
        return pages;
    munmap(pages, nbytes);
    return NULL;
}

/* ------------------------------------------------------------------ regions */

static int by_address(const void *a, const void *b)
{
    uintptr_t x = ((const region *)a)->from, y = ((const region *)b)->from;
    return (x > y) - (x < y);
}

static region pages_of(const struct iovec *iov, uintptr_t page)
{
    uintptr_t from = (uintptr_t)iov->iov_base, to = from + iov->iov_len;
    return (region){from & ~(page - 1), (to + page - 1) & ~(page - 1), NULL};
}

static uint32_t collect(region *to, const cb_iov *slots, uint32_t nslots, uintptr_t page)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < nslots; i++)
        for (uint32_t j = 0; j < slots[i].n; j++)
            if (slots[i].iov[j].iov_len)
                to[n++] = pages_of(&slots[i].iov[j], page);
    return n;
}

static size_t count_buffers(const cb_iov *slots, uint32_t nslots)
{
    size_t n = 0;
    for (uint32_t i = 0; i < nslots; i++)
        n += slots[i].n;
    return n;
}

/* Sorted, and those that touch joined. */
static uint32_t join_regions(region *at, uint32_t n)
{
    uint32_t joined = 0;
    qsort(at, n, sizeof *at, by_address);
    for (uint32_t i = 0; i < n; i++)
        if (joined > 0 && at[i].from <= at[joined - 1].to)
            at[joined - 1].to = at[i].to > at[joined - 1].to ? at[i].to : at[joined - 1].to;
        else
            at[joined++] = at[i];
    return joined;
}

static int register_slots(rdma *r, const cb_case *c)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    size_t room = count_buffers(c->request, c->nrequest) + count_buffers(c->reply, c->nreply) +
                  count_buffers(c->incoming, c->nincoming);
    region *at = calloc(room + 1, sizeof *at);
    if (!at)
        return refuse(r, -ENOMEM, "out of memory");
    uint32_t n = collect(at, c->request, c->nrequest, page);
    n += collect(at + n, c->reply, c->nreply, page);
    n += collect(at + n, c->incoming, c->nincoming, page);
    n = join_regions(at, n);
    r->regions = (regions){at, 0, (uint32_t)room + 1, 0};
    for (int rc; r->regions.count < n; r->regions.count++) {
        region *one = &at[r->regions.count];
        if (!(one->mr = pin(r, (void *)one->from, one->to - one->from, &rc)))
            return rc;
    }
    return 0;
}

static void release_slots(rdma *r)
{
    for (uint32_t i = 0; i < r->regions.count; i++)
        ibv_dereg_mr(r->regions.at[i].mr);
    free(r->regions.at);
    r->regions = (regions){0};
}

static bool holds(const region *one, uintptr_t from, size_t nbytes)
{
    return from >= one->from && from + nbytes <= one->to;
}

/* Memory that is in no slot: what a handler answers with. It is registered until the case ends. */
static WIRE_SLOW struct ibv_mr *adopt(rdma *r, const struct iovec *iov, int *rc)
{
    regions *all = &r->regions;
    region one = pages_of(iov, (uintptr_t)sysconf(_SC_PAGESIZE));
    if (all->count == all->room) {
        region *more = realloc(all->at, (size_t)all->room * 2 * sizeof *more);
        if (!more) {
            *rc = refuse(r, -ENOMEM, "out of memory");
            return NULL;
        }
        all->at = more;
        all->room *= 2;
    }
    if (!(one.mr = pin(r, (void *)one.from, one.to - one.from, rc)))
        return NULL;
    all->last = all->count++;
    all->at[all->last] = one;
    return one.mr;
}

/* The region that has this buffer: mostly the one that had the last. */
static inline struct ibv_mr *region_of(rdma *r, const struct iovec *iov, int *rc)
{
    regions *all = &r->regions;
    uintptr_t from = (uintptr_t)iov->iov_base;
    if (all->last < all->count && holds(&all->at[all->last], from, iov->iov_len))
        return all->at[all->last].mr;
    for (uint32_t i = 0; i < all->count; i++)
        if (holds(&all->at[i], from, iov->iov_len)) {
            all->last = i;
            return all->at[i].mr;
        }
    return adopt(r, iov, rc);
}
