/* The device, its queues and queue pairs. Part of engine.c. */
static int refuse_to_open(engine *e, int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(e->error, sizeof e->error, format, arguments);
    va_end(arguments);
    return code;
}

static int find_device(engine *e, const char *name)
{
    int n = 0, rc = -ENODEV;
    struct ibv_device **all = ibv_get_device_list(&n);
    snprintf(e->name, sizeof e->name, "%s", name);
    refuse_to_open(e, rc, "libibverbs knows no device %s: is its provider installed "
                          "(ibverbs-providers)?", name);
    for (int i = 0; all && i < n && !e->context; i++)
        if (strcmp(ibv_get_device_name(all[i]), name) == 0 &&
            !(e->context = ibv_open_device(all[i])))
            rc = refuse_to_open(e, -errno, "the RDMA device %s cannot be opened: %s", name,
                                strerror(errno));
    if (all)
        ibv_free_device_list(all);
    return e->context ? 0 : rc;
}

static int look_at_device(engine *e)
{
    struct ibv_device_attr device;
    struct ibv_port_attr port;
    int code = ibv_query_device(e->context, &device);
    if (code == 0)
        code = ibv_query_port(e->context, (uint8_t)e->o.port, &port);
    if (code != 0)
        return refuse_to_open(e, -code, "%s does not describe itself: %s", e->name, strerror(code));
    snprintf(e->limits.firmware, sizeof e->limits.firmware, "%s", device.fw_ver);
    e->limits.max_msg_sz = port.max_msg_sz ? port.max_msg_sz : 1u << 30;
    e->limits.active_mtu = 128u << port.active_mtu;
    e->limits.lid = port.lid;
    uint64_t entries = (uint64_t)(e->o.size - 1) * 2 * e->o.depth;
    if (e->o.depth > (uint32_t)device.max_qp_wr || entries > (uint64_t)device.max_cqe)
        return refuse_to_open(e, -EINVAL, "depth=%u: %s has room for %d work requests of a queue "
                              "pair and for %d completions", e->o.depth, e->name, device.max_qp_wr,
                              device.max_cqe);
    return 0;
}

static int make_queue(engine *e)
{
    uint64_t entries = (uint64_t)(e->o.size - 1) * 2 * e->o.depth;
    int n = entries < QUEUE_ENTRIES ? QUEUE_ENTRIES : (int)entries;
    struct epoll_event in = {.events = EPOLLIN};
    e->pd = ibv_alloc_pd(e->context);
    e->events = ibv_create_comp_channel(e->context);
    e->cq = e->events ? ibv_create_cq(e->context, n, NULL, e->events, 0) : NULL;
    if (!e->pd || !e->cq)
        return refuse_to_open(e, -errno, "%s gives no protection domain or no completion queue of "
                              "%d entries: %s", e->name, n, strerror(errno));
    e->wake = eventfd(0, EFD_CLOEXEC);
    e->either = epoll_create1(EPOLL_CLOEXEC);
    fcntl(e->events->fd, F_SETFL, fcntl(e->events->fd, F_GETFL) | O_NONBLOCK);
    if (e->wake < 0 || e->either < 0 || epoll_ctl(e->either, EPOLL_CTL_ADD, e->wake, &in) ||
        epoll_ctl(e->either, EPOLL_CTL_ADD, e->events->fd, &in) || ibv_req_notify_cq(e->cq, 0))
        return refuse_to_open(e, -errno, "%s gives no completion events: %s", e->name,
                              strerror(errno));
    return 0;
}

static int make_conn(engine *e, int32_t rank)
{
    conn *c = &e->conns[rank];
    int rc = 0;
    struct ibv_qp_init_attr a = {
        .send_cq = e->cq, .recv_cq = e->cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = e->o.depth, .max_recv_wr = e->o.depth, .max_send_sge = 1,
                .max_recv_sge = 1}};
    c->tx = make_pages(&e->regions, BUFFER_NBYTES + PING_NBYTES, &c->tx_mr, &rc);
    if (c->tx)
        c->rx = make_pages(&e->regions, BUFFER_NBYTES + PING_NBYTES, &c->rx_mr, &rc);
    if (rc < 0)
        return forward(e, rc);
    c->qp = ibv_create_qp(e->pd, &a);
    if (!c->qp)
        return refuse_to_open(e, -errno, "%s gives no queue pair: %s", e->name, strerror(errno));
    if (getrandom(&c->psn, sizeof c->psn, 0) < 0)
        c->psn = (uint32_t)monotonic_ns();
    c->psn &= 0xffffff;
    return 0;
}

static int open_device(engine *e)
{
    int rc = find_device(e, e->o.device);
    if (rc == 0)
        rc = look_at_device(e);
    if (rc == 0)
        rc = make_queue(e);
    if (rc < 0)
        return rc;
    e->regions = (regions){.pd = e->pd, .device = e->name, .error = e->region_error};
    for (uint32_t rank = 0; rc == 0 && rank < e->o.size; rank++) {
        e->conns[rank].rank = (int32_t)rank;
        if (rank != e->o.rank)
            rc = make_conn(e, (int32_t)rank);
    }
    if (rc == 0 && !start_thread(e))
        rc = refuse_to_open(e, -EAGAIN, "no thread can be started");
    return rc;
}

static void close_conn(conn *c)
{
    if (c->qp)
        ibv_destroy_qp(c->qp);
    if (c->tx) {
        ibv_dereg_mr(c->tx_mr);
        munmap(c->tx, BUFFER_NBYTES + PING_NBYTES);
    }
    if (c->rx) {
        ibv_dereg_mr(c->rx_mr);
        munmap(c->rx, BUFFER_NBYTES + PING_NBYTES);
    }
    *c = (conn){.rank = c->rank, .lost = true};
}

void cb_verbs_close(cb_verbs *e)
{
    if (e->started) {
        finish(e);
        end_thread(e);
    }
    for (uint32_t i = 0; i < e->o.size; i++)
        close_conn(&e->conns[i]);
    if (e->cq) {
        take_events(e);
        ibv_destroy_cq(e->cq);
    }
    if (e->events)
        ibv_destroy_comp_channel(e->events);
    if (e->pd)
        ibv_dealloc_pd(e->pd);
    if (e->context)
        ibv_close_device(e->context);
    if (e->wake >= 0)
        close(e->wake);
    if (e->either >= 0)
        close(e->either);
    e->cq = NULL, e->events = NULL, e->pd = NULL, e->context = NULL, e->wake = e->either = -1;
}

void cb_verbs_free(cb_verbs *e)
{
    cb_verbs_close(e);
    free(e->conns);
    free(e->meetings);
    free(e);
}

/* ------------------------------------------------------------------ for the connecting code */

static conn *other(engine *e, uint32_t peer)
{
    return peer < e->o.size && e->conns[peer].qp ? &e->conns[peer] : NULL;
}

int cb_verbs_endpoint_of(cb_verbs *e, uint32_t peer, cb_verbs_endpoint *out)
{
    const conn *c = other(e, peer);
    if (!c)
        return refuse_to_open(e, -EINVAL, "no queue pair for rank %u", peer);
    *out = (cb_verbs_endpoint){c->qp->qp_num, c->psn, {(uintptr_t)c->tx, c->tx_mr->rkey},
                               {(uintptr_t)c->rx, c->rx_mr->rkey}};
    return 0;
}

/* The ping, and then empty ones for what comes with immediate data. */
static int post_receives(engine *e, conn *c)
{
    struct ibv_sge ping = {(uintptr_t)c->rx + BUFFER_NBYTES, PING_NBYTES, c->rx_mr->lkey};
    post_receive(e, c, &ping);
    for (uint32_t i = 1; i < e->o.depth; i++)
        post_receive(e, c, NULL);
    return e->failed ? refuse(e, e->failed, e->thread_error) : 0;
}

int cb_verbs_modify(cb_verbs *e, uint32_t peer, struct ibv_qp_attr *attributes, int mask)
{
    conn *c = other(e, peer);
    if (!c)
        return refuse_to_open(e, -EINVAL, "no queue pair for rank %u", peer);
    int code = ibv_modify_qp(c->qp, attributes, mask);
    if (code != 0)
        return refuse_to_open(e, -code, "%s: the queue pair to rank %u does not become %s: %s",
                              e->name, peer, attributes->qp_state == IBV_QPS_INIT ? "INIT"
                              : attributes->qp_state == IBV_QPS_RTR ? "ready to receive"
                                                                    : "ready to send",
                              strerror(code));
    return attributes->qp_state == IBV_QPS_INIT ? post_receives(e, c) : 0;
}

int cb_verbs_join(cb_verbs *e, uint32_t peer, const cb_verbs_region *rx)
{
    conn *c = other(e, peer);
    if (!c)
        return refuse_to_open(e, -EINVAL, "no queue pair for rank %u", peer);
    c->theirs = *rx;
    return 0;
}

static bool ping(engine *e, conn *c)
{
    struct ibv_sge sge = {(uintptr_t)c->tx + BUFFER_NBYTES, PING_NBYTES, c->tx_mr->lkey};
    struct ibv_send_wr w = {.wr_id = wr_id(c, CARGO_PING, 0), .opcode = IBV_WR_SEND,
                            .sg_list = &sge, .num_sge = 1};
    return post_send(e, c, &w);
}

/* The completion thread sleeps meanwhile: no case is prepared. */
int cb_verbs_ping(cb_verbs *e, int64_t timeout_ns)
{
    int64_t until = monotonic_ns() + timeout_ns;
    struct ibv_wc wc;
    bool all = false;
    for (uint32_t i = 0; i < e->o.size; i++)
        if (e->conns[i].qp)
            ping(e, &e->conns[i]);
    while (!all && !e->failed && monotonic_ns() < until) {
        all = true;
        for (uint32_t i = 0; i < e->o.size; i++)
            all = all && (!e->conns[i].qp || (e->conns[i].pinged && e->conns[i].used == 0));
        int n = all ? 0 : ibv_poll_cq(e->cq, 1, &wc);
        if (n > 0)
            take_completion(e, &wc);
        else
            sched_yield();
    }
    if (e->failed)
        return refuse(e, e->failed, e->thread_error);
    return all ? 0 : refuse(e, -ETIMEDOUT, "a rank does not answer over its queue pair");
}
