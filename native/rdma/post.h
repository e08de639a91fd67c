/* Work requests: put together for one doorbell, counted, completed. Part of engine.c. */
#define WR_BITS 40
#define WR_MASK ((UINT64_C(1) << WR_BITS) - 1)

static void run_afters(conn *c);

static bool means_gone(enum ibv_wc_status status)
{
    return status == IBV_WC_RETRY_EXC_ERR || status == IBV_WC_RNR_RETRY_EXC_ERR ||
           status == IBV_WC_WR_FLUSH_ERR || status == IBV_WC_REM_ABORT_ERR ||
           status == IBV_WC_RESP_TIMEOUT_ERR;
}

static bool port_is_down(const rdma *r)
{
    struct ibv_port_attr port;
    return ibv_query_port(r->context, (uint8_t)r->o.port, &port) == 0 &&
           port.state != IBV_PORT_ACTIVE;
}

/* A queue pair that failed flushes all that it has; what counts is the first reason. */
static WIRE_SLOW int failed(conn *c, const struct ibv_wc *wc)
{
    rdma *r = c->r;
    struct ibv_wc next;
    enum ibv_wc_status why = wc->status;
    while (why == IBV_WC_WR_FLUSH_ERR && ibv_poll_cq(r->send_cq, 1, &next) > 0)
        if (next.status != IBV_WC_SUCCESS && &r->conns[next.wr_id >> WR_BITS] == c)
            why = next.status;
    c->lost = true;
    return refuse(r, means_gone(why) ? -ECONNRESET : -EIO, "rank %d %s (%s)%s", (int)c->peer,
                  means_gone(why) ? "is gone" : "and this one failed to communicate",
                  ibv_wc_status_str(why), port_is_down(r) ? "; our port is not active" : "");
}

static WIRE_SLOW int cancelled(rdma *r)
{
    return refuse(r, -ECANCELED, "the run was stopped");
}

static int reap_sends(rdma *r)
{
    struct ibv_wc wc[CQ_BATCH];
    int n;
    do {
        if ((n = ibv_poll_cq(r->send_cq, CQ_BATCH, wc)) < 0)
            return refuse(r, -EIO, "the completion queue of %s failed", r->o.device);
        for (int i = 0; i < n; i++) {
            conn *c = &r->conns[wc[i].wr_id >> WR_BITS];
            if (__builtin_expect(wc[i].status != IBV_WC_SUCCESS, 0))
                return failed(c, &wc[i]);
            c->wr_done = wc[i].wr_id & WR_MASK;
            run_afters(c);
        }
    } while (n == CQ_BATCH);
    return 0;
}

/* Hands over what was put together. */
static inline int ring_bell(rdma *r)
{
    struct ibv_send_wr *bad;
    if (r->batched == 0)
        return 0;
    r->wrs[r->batched - 1].next = NULL;
    r->batched = 0;
    int code = ibv_post_send(r->batching->qp, r->wrs, &bad);
    return __builtin_expect(code == 0, 1)
               ? 0 : refuse(r, -EIO, "%s takes no work request for rank %d: %s", r->o.device,
                            (int)r->batching->peer, strerror(code > 0 ? code : -code));
}

/* Room for one more. The device alone makes it: no peer has to do anything, and one that is gone
 * shows as an error. */
static inline int make_room(conn *c)
{
    rdma *r = c->r;
    int rc = 0;
    if (r->batched > 0 && (r->batching != c || r->batched == BATCH_MAX))
        rc = ring_bell(r);
    if (__builtin_expect(c->wr - c->wr_done < r->o.tx_depth, 1))
        return rc;
    if (rc == 0)
        rc = ring_bell(r);
    while (rc == 0 && c->wr - c->wr_done >= r->o.tx_depth)
        rc = stopped(r) ? cancelled(r) : c->lost ? refuse(r, -ECONNRESET, "rank %d is gone",
                                                          (int)c->peer) : reap_sends(r);
    return rc;
}

/* The next work request; make_room() was called. It counts from commit() on. */
static inline struct ibv_send_wr *next_wr(conn *c, struct ibv_sge **sges)
{
    rdma *r = c->r;
    struct ibv_send_wr *w = &r->wrs[r->batched];
    r->again = NULL;
    r->batching = c;
    *sges = r->sges[r->batched];
    w->sg_list = *sges;
    w->num_sge = 0;
    w->send_flags = 0;
    return w;
}

static inline void commit(conn *c, struct ibv_send_wr *w, uint64_t nbytes, bool signalled)
{
    rdma *r = c->r;
    c->wr++;
    w->wr_id = (uint64_t)(uint32_t)c->peer << WR_BITS | c->wr;
    w->next = w + 1;
    if (signalled || c->wr - c->wr_signalled >= r->o.signal_every) {
        w->send_flags |= IBV_SEND_SIGNALED;
        c->wr_signalled = c->wr;
    }
    r->bytes_sent += nbytes;
    r->batched++;
}

/* Completes all that was posted before it: a write of nothing. */
static WIRE_SLOW int post_marker(conn *c)
{
    struct ibv_sge *sges;
    int rc = make_room(c);
    if (rc < 0)
        return rc;
    struct ibv_send_wr *w = next_wr(c, &sges);
    w->opcode = IBV_WR_RDMA_WRITE;
    w->wr.rdma.remote_addr = c->theirs.ring_address;
    w->wr.rdma.rkey = c->theirs.ring_rkey;
    commit(c, w, 0, true);
    return ring_bell(c->r);
}

static int post_receive(conn *c, uint32_t entry)
{
    rdma *r = c->r;
    struct ibv_sge sge = {(uintptr_t)c->ring + (size_t)entry * r->stride, r->stride,
                          r->rings_mr->lkey};
    struct ibv_recv_wr w = {.wr_id = (uint64_t)(uint32_t)c->peer, .sg_list = &sge, .num_sge = 1}, *bad;
    if (r->o.op == CB_RDMA_WRITE_IMM)
        w.num_sge = 0;
    int code = ibv_post_recv(c->qp, &w, &bad);
    return code == 0 ? 0 : refuse(r, -EIO, "%s takes no receive request: %s", r->o.device,
                                  strerror(code > 0 ? code : -code));
}

/* The entry of a frame that was taken. */
static inline int post_again(conn *c, uint32_t frame)
{
    return c->r->srq ? post_shared(c->r, c->entry[frame]) : post_receive(c, frame);
}

static inline int reap_receives(rdma *r)
{
    struct ibv_wc wc[CQ_BATCH];
    int n = ibv_poll_cq(r->recv_cq, CQ_BATCH, wc);
    if (n < 0)
        return refuse(r, -EIO, "the completion queue of %s failed", r->o.device);
    for (int i = 0; i < n; i++) {
        conn *c = r->srq ? owner_of(r, wc[i].qp_num) : &r->conns[wc[i].wr_id];
        if (__builtin_expect(!c, 0))
            return refuse(r, -EIO, "%s has a completion of no queue pair", r->o.device);
        if (__builtin_expect(wc[i].status != IBV_WC_SUCCESS, 0))
            return failed(c, &wc[i]);
        int rc = r->srq ? came_shared(c, &wc[i]) : 0;
        if (rc < 0)
            return rc;
        uint32_t frame = c->came++ & (r->depth - 1);
        c->length[frame] = wc[i].byte_len;
        c->bare[frame] = (wc[i].wc_flags & IBV_WC_WITH_IMM) && wc[i].imm_data != 0;
    }
    return n;
}

/* ------------------------------------------------------------------ what waits for a completion */

static void after_wr(conn *c, enum after_kind kind, uint32_t slot)
{
    uint32_t at = c->after_head + c->after_count++;
    c->afters[at < c->after_size ? at : at - c->after_size] = (after){c->wr, kind, slot};
    c->r->nafters++;
}

static uint64_t last_after(const conn *c)
{
    uint32_t at = c->after_head + c->after_count - 1;
    return c->afters[at < c->after_size ? at : at - c->after_size].wr;
}

/* Payload between registered memory of ours, from or to `here`, and segments of the peer. */
static int move(conn *c, enum ibv_wr_opcode opcode, wire_cursor here, const segment *theirs)
{
    rdma *r = c->r;
    uint64_t left = theirs->nbytes, at = theirs->address;
    while (left > 0) {
        struct ibv_sge *sges;
        uint64_t part = 0, most = left < r->piece ? left : r->piece;
        int rc = make_room(c);
        if (rc < 0)
            return rc;
        struct ibv_send_wr *w = next_wr(c, &sges);
        while (part < most && (uint32_t)w->num_sge < r->max_sge) {
            struct iovec piece = wire_step(&here, most - part);
            if (piece.iov_len == 0)
                continue;
            struct ibv_mr *mr = region_of(&r->regions, &piece, &rc);
            if (!mr)
                return rc;
            sges[w->num_sge++] = (struct ibv_sge){(uintptr_t)piece.iov_base,
                                                  (uint32_t)piece.iov_len, mr->lkey};
            part += piece.iov_len;
        }
        w->opcode = opcode;
        w->wr.rdma.remote_addr = at;
        w->wr.rdma.rkey = theirs->rkey;
        at += part;
        left -= part;
        commit(c, w, opcode == IBV_WR_RDMA_READ ? 0 : part, opcode == IBV_WR_RDMA_READ && left == 0);
    }
    return 0;
}
