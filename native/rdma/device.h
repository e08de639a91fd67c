/* The device, its queues and queue pairs. Part of engine.c. */
static int find_device(rdma *r, const char *name)
{
    int n = 0;
    struct ibv_device **all = ibv_get_device_list(&n);
    for (int i = 0; all && i < n && !r->context; i++)
        if (strcmp(ibv_get_device_name(all[i]), name) == 0) {
            r->context = ibv_open_device(all[i]);
            if (!r->context)
                refuse(r, -errno, "the RDMA device %s cannot be opened: %s", name, strerror(errno));
        }
    if (all)
        ibv_free_device_list(all);
    if (!r->context)
        return r->error[0] ? -EACCES : refuse(r, -ENODEV, "libibverbs knows no device %s: is its "
                                              "provider installed (ibverbs-providers)?", name);
    snprintf(r->name, sizeof r->name, "%s", name);
    return 0;
}

static uint32_t mtu_bytes(enum ibv_mtu mtu)
{
    return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128u << mtu : 0;
}

static int look_at_device(rdma *r)
{
    struct ibv_device_attr device;
    struct ibv_port_attr port;
    int code = ibv_query_device(r->context, &device);
    if (code == 0)
        code = ibv_query_port(r->context, (uint8_t)r->o.port, &port);
    if (code != 0)
        return refuse(r, -code, "%s does not describe itself: %s", r->o.device, strerror(code));
    snprintf(r->limits.firmware, sizeof r->limits.firmware, "%s", device.fw_ver);
    uint32_t sge = (uint32_t)device.max_sge;
    if (device.max_sge_rd > 0 && r->o.op == CB_RDMA_READ && (uint32_t)device.max_sge_rd < sge)
        sge = (uint32_t)device.max_sge_rd;
    r->limits.max_sge = sge < SGE_MAX ? sge : SGE_MAX;
    r->limits.max_rd_atomic = (uint32_t)(device.max_qp_rd_atom < device.max_qp_init_rd_atom
                                         ? device.max_qp_rd_atom : device.max_qp_init_rd_atom);
    r->limits.max_msg_sz = port.max_msg_sz ? port.max_msg_sz : 1u << 30;
    r->piece = r->o.chunk && r->o.chunk < r->limits.max_msg_sz ? r->o.chunk : r->limits.max_msg_sz;
    r->limits.active_mtu = mtu_bytes(port.active_mtu);
    r->limits.lid = port.lid;
    r->limits.state = port.state;
    r->depth = r->o.srq ? share_of_entries(r) : r->o.rx_depth;
    uint64_t frames = (uint64_t)(r->o.size - 1) * r->depth;
    if (r->depth > (uint32_t)device.max_qp_wr || frames + 16 > (uint64_t)device.max_cqe)
        return refuse(r, -EINVAL, "rx_depth=%u: %s has room for %d receive requests of a queue pair "
                      "and %d of all", r->o.rx_depth, r->o.device, device.max_qp_wr, device.max_cqe);
    if (r->o.tx_depth > (uint32_t)device.max_qp_wr)
        return refuse(r, -EINVAL, "tx_depth=%u: %s has room for %d", r->o.tx_depth, r->o.device,
                      device.max_qp_wr);
    return 0;
}

static struct ibv_cq *make_queue(rdma *r, uint64_t entries)
{
    int n = entries < 32768 - 16 ? (int)entries : 32768 - 16;
    struct ibv_cq *cq = ibv_create_cq(r->context, n, NULL, r->events, 0);
    if (!cq)
        refuse(r, -errno, "%s gives no completion queue of %d entries: %s", r->o.device, n,
               strerror(errno));
    return cq;
}

static int make_queues(rdma *r)
{
    uint64_t peers = r->o.size - 1;
    r->pd = ibv_alloc_pd(r->context);
    r->regions = (regions){.pd = r->pd, .device = r->name, .error = r->error};
    r->events = ibv_create_comp_channel(r->context);
    if (!r->pd || !r->events)
        return refuse(r, -errno, "%s gives no protection domain or no events: %s", r->o.device,
                      strerror(errno));
    fcntl(r->events->fd, F_SETFL, fcntl(r->events->fd, F_GETFL) | O_NONBLOCK);
    r->send_cq = make_queue(r, peers * r->o.tx_depth + 16);
    r->recv_cq = make_queue(r, peers * r->depth + 16);
    return r->send_cq && r->recv_cq ? 0 : -ENOMEM;
}

/* With as much room in a work request as the device has, up to what was asked for; halved until the
 * device takes it: no call says how much that is. */
static struct ibv_qp *make_qp(rdma *r)
{
    struct ibv_qp_init_attr a = {
        .send_cq = r->send_cq, .recv_cq = r->recv_cq, .srq = r->srq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = r->o.tx_depth, .max_send_sge = r->limits.max_sge,
                .max_recv_wr = r->o.op == CB_RDMA_WRITE ? 1 : r->depth, .max_recv_sge = 1,
                .max_inline_data = r->o.inline_max}};
    for (;;) {
        struct ibv_qp_init_attr got = a;
        struct ibv_qp *qp = ibv_create_qp(r->pd, &got);
        if (qp) {
            r->max_sge = a.cap.max_send_sge;
            r->limits.max_sge = r->max_sge;
            r->limits.max_inline = got.cap.max_inline_data < r->o.inline_max
                                       ? got.cap.max_inline_data : r->o.inline_max;
            return qp;
        }
        if (a.cap.max_inline_data > 0)
            a.cap.max_inline_data /= 2;
        else if (a.cap.max_send_sge > 4)
            a.cap.max_send_sge /= 2;
        else
            break;
    }
    refuse(r, -errno, "%s gives no queue pair: %s", r->o.device, strerror(errno));
    return NULL;
}

static int make_conn(rdma *r, uint32_t peer, char *ring)
{
    conn *c = &r->conns[peer];
    c->r = r;
    c->peer = (int32_t)peer;
    c->ring = ring;
    c->length = calloc(r->depth, sizeof *c->length);
    c->bare = calloc(r->depth, sizeof *c->bare);
    c->entry = r->srq ? calloc(r->depth, sizeof *c->entry) : NULL;
    if (!c->length || !c->bare || (r->srq && !c->entry))
        return refuse(r, -ENOMEM, "out of memory");
    for (uint32_t entry = 0; r->o.op == CB_RDMA_WRITE && entry < r->depth; entry++)
        mark_untouched(c, entry + 1);
    c->qp = make_qp(r);
    if (!c->qp)
        return -EIO;
    if (r->srq)
        note_owner(r, c);
    c->adapter.from = 8192;
    c->psn = (uint32_t)((uint64_t)now_ns() * 2654435761u >> 8) & 0xffffff;
    return 0;
}

static int open_device(rdma *r, const char *name)
{
    int rc = find_device(r, name);
    if (rc == 0)
        rc = look_at_device(r);
    if (rc == 0)
        rc = make_queues(r);
    if (rc < 0)
        return rc;
    uint64_t longest = r->o.eager_max > 4096 ? r->o.eager_max : 4096;
    r->stride = (uint32_t)((longest + sizeof(frame_tail) + 63) / 64 * 64);
    r->rings_nbytes = (size_t)r->stride * r->depth * (r->o.size > 1 ? r->o.size - 1 : 1);
    r->conns = calloc(r->o.size, sizeof *r->conns);
    if (!r->conns)
        return refuse(r, -ENOMEM, "out of memory");
    r->rings = make_pages(&r->regions, r->rings_nbytes, &r->rings_mr, &rc);
    if (rc == 0 && r->o.srq)
        rc = make_shared_queue(r);
    if (rc == 0 && r->srq)
        rc = make_table(r);
    char *ring = r->rings;
    for (uint32_t peer = 0; rc == 0 && peer < r->o.size; peer++)
        if (peer != r->o.rank) {
            rc = make_conn(r, peer, ring);
            ring += r->srq ? 0 : (size_t)r->stride * r->depth;
        }
    return rc;
}

static void close_conn(conn *c)
{
    size_t depth = c->theirs.ring_depth;
    if (c->qp)
        ibv_destroy_qp(c->qp);
    if (c->stage_mr) {
        ibv_dereg_mr(c->stage_mr);
        munmap(c->stage, depth * c->theirs.ring_stride);
    }
    if (c->tails_mr) {
        ibv_dereg_mr(c->tails_mr);
        munmap(c->tails, depth * sizeof *c->tails);
    }
    free(c->length);
    free(c->bare);
    free(c->entry);
}

/* The struct itself stays: a case that was not ended may still call finish(). */
void cb_rdma_close(cb_rdma *r)
{
    finish(r);
    for (uint32_t i = 0; r->conns && i < r->o.size; i++)
        close_conn(&r->conns[i]);
    free(r->conns);
    r->conns = NULL;
    free(r->by_qpn);
    r->by_qpn = NULL;
    if (r->srq)
        ibv_destroy_srq(r->srq);
    r->srq = NULL;
    if (r->rings_mr) {
        ibv_dereg_mr(r->rings_mr);
        munmap(r->rings, r->rings_nbytes);
    }
    if (r->events)
        clear_events(r);
    if (r->send_cq)
        ibv_destroy_cq(r->send_cq);
    if (r->recv_cq)
        ibv_destroy_cq(r->recv_cq);
    if (r->events)
        ibv_destroy_comp_channel(r->events);
    if (r->pd)
        ibv_dealloc_pd(r->pd);
    if (r->context)
        ibv_close_device(r->context);
    r->rings_mr = NULL;
    r->events = NULL;
    r->send_cq = r->recv_cq = NULL;
    r->pd = NULL;
    r->context = NULL;
}

void cb_rdma_free(cb_rdma *r)
{
    cb_rdma_close(r);
    free(r);
}

/* ------------------------------------------------------------------ for the connecting code */

cb_engine *cb_rdma_engine(cb_rdma *r)
{
    return &r->engine;
}

const cb_rdma_limits *cb_rdma_limits_of(const cb_rdma *r)
{
    return &r->limits;
}

uint64_t cb_rdma_sent(const cb_rdma *r)
{
    return r->bytes_sent;
}

uint32_t cb_rdma_regions(const cb_rdma *r)
{
    return r->regions.count;
}

uint64_t cb_rdma_threshold(const cb_rdma *r, uint32_t peer)
{
    if (peer >= r->o.size || !r->conns || !r->conns[peer].qp)
        return UINT64_MAX;
    return r->o.adaptive ? threshold(&r->conns[peer].adapter) : eager_max(&r->conns[peer]) + 1;
}

static conn *other(rdma *r, uint32_t peer)
{
    return r->conns && peer < r->o.size && r->conns[peer].qp ? &r->conns[peer] : NULL;
}

int cb_rdma_endpoint_of(cb_rdma *r, uint32_t peer, cb_rdma_endpoint *out)
{
    conn *c = other(r, peer);
    if (!c)
        return refuse(r, -EINVAL, "no queue pair for rank %u", peer);
    *out = (cb_rdma_endpoint){c->qp->qp_num, c->psn, r->rings_mr->rkey, r->depth, r->stride,
                              (uintptr_t)c->ring};
    return 0;
}

/* A queue pair takes receive requests from INIT on, and must have them before its peer sends. */
static int post_receives(conn *c)
{
    int rc = 0;
    bool none = c->r->srq || c->r->o.op == CB_RDMA_WRITE;
    for (uint32_t i = 0; rc == 0 && !none && i < c->r->depth; i++)
        rc = post_receive(c, i);
    return rc;
}

int cb_rdma_modify(cb_rdma *r, uint32_t peer, struct ibv_qp_attr *attributes, int mask)
{
    conn *c = other(r, peer);
    if (!c)
        return refuse(r, -EINVAL, "no queue pair for rank %u", peer);
    int code = ibv_modify_qp(c->qp, attributes, mask);
    if (code != 0)
        return refuse(r, -code, "%s: the queue pair to rank %u does not become %s: %s", r->o.device,
                      peer, attributes->qp_state == IBV_QPS_INIT ? "INIT"
                      : attributes->qp_state == IBV_QPS_RTR ? "ready to receive"
                                                            : "ready to send", strerror(code));
    return attributes->qp_state == IBV_QPS_INIT ? post_receives(c) : 0;
}

int cb_rdma_join(cb_rdma *r, uint32_t peer, const cb_rdma_endpoint *theirs)
{
    conn *c = other(r, peer);
    uint32_t depth = theirs->ring_depth;
    int rc = 0;
    if (!c || c->tails || depth < 16 || depth > 1u << 16 || (depth & (depth - 1)) ||
        theirs->ring_stride < 4096 + sizeof(frame_tail))
        return refuse(r, -EINVAL, "rank %u has a ring of %u entries of %u bytes", peer, depth,
                      theirs->ring_stride);
    c->theirs = *theirs;
    c->tails = make_pages(&r->regions, depth * sizeof *c->tails, &c->tails_mr, &rc);
    return rc;
}
