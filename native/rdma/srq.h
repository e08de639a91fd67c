/* One receive queue for the frames of all peers. Entries come out of it in the order of arrival, so a
 * completion says which entry it was, and the number of its queue pair who sent it. There are as many
 * entries as all peers together may send ahead: a receiver is always ready here, too. Part of
 * engine.c. */
enum { LEAST_DEPTH = 16 };

/* Of each peer, a power of two, so that all have `rx_depth` entries or few more. */
static uint32_t share_of_entries(const rdma *r)
{
    uint32_t peers = r->o.size > 1 ? r->o.size - 1 : 1, depth = r->o.rx_depth;
    while (depth > LEAST_DEPTH && (uint64_t)depth * peers > r->o.rx_depth)
        depth /= 2;
    return depth;
}

static int post_shared(rdma *r, uint32_t entry)
{
    struct ibv_sge sge = {(uintptr_t)r->rings + (size_t)entry * r->stride, r->stride,
                          r->rings_mr->lkey};
    struct ibv_recv_wr w = {.wr_id = entry, .sg_list = &sge, .num_sge = 1}, *bad;
    int code = ibv_post_srq_recv(r->srq, &w, &bad);
    return code == 0 ? 0 : refuse(r, -EIO, "%s takes no receive request: %s", r->o.device,
                                  strerror(code > 0 ? code : -code));
}

/* With all entries in it. */
static int make_shared_queue(rdma *r)
{
    struct ibv_device_attr device;
    uint32_t entries = r->depth * (r->o.size > 1 ? r->o.size - 1 : 1);
    int rc = ibv_query_device(r->context, &device);
    if (rc != 0 || device.max_srq == 0 || entries > (uint32_t)device.max_srq_wr)
        return refuse(r, -EINVAL, "srq=on: %s has room for %d requests in a shared receive queue, and "
                      "%u are needed", r->o.device, rc || !device.max_srq ? 0 : device.max_srq_wr,
                      entries);
    struct ibv_srq_init_attr wanted = {.attr = {.max_wr = entries, .max_sge = 1}};
    r->srq = ibv_create_srq(r->pd, &wanted);
    if (!r->srq)
        return refuse(r, -errno, "%s gives no shared receive queue: %s", r->o.device,
                      strerror(errno));
    for (uint32_t i = 0; rc == 0 && i < entries; i++)
        rc = post_shared(r, i);
    return rc;
}

static int make_table(rdma *r)
{
    for (r->nby_qpn = 2; r->nby_qpn < 2 * r->o.size;)
        r->nby_qpn *= 2;
    r->by_qpn = calloc(r->nby_qpn, sizeof *r->by_qpn);
    return r->by_qpn ? 0 : refuse(r, -ENOMEM, "out of memory");
}

static void note_owner(rdma *r, conn *c)
{
    uint32_t at = c->qp->qp_num;
    while (r->by_qpn[at & (r->nby_qpn - 1)])
        at++;
    r->by_qpn[at & (r->nby_qpn - 1)] = c;
}

/* The table is at most half full, so this ends. */
static inline conn *owner_of(const rdma *r, uint32_t qpn)
{
    conn *c;
    for (uint32_t at = qpn; (c = r->by_qpn[at & (r->nby_qpn - 1)]) != NULL; at++)
        if (c->qp->qp_num == qpn)
            return c;
    return NULL;
}

/* A frame came; its peer must have had room for it. */
static inline int came_shared(conn *c, const struct ibv_wc *wc)
{
    rdma *r = c->r;
    if (c->came - c->head >= r->depth)
        return refuse(r, -EPROTO, "rank %d sent more frames than it may", (int)c->peer);
    c->entry[c->came & (r->depth - 1)] = (uint32_t)wc->wr_id;
    return 0;
}
