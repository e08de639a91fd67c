/*
 * The plain C loops over RC queue pairs that the rdma channel is measured against: what ib_write_lat,
 * ib_send_lat and ib_write_bw do, with two stamps for each round trip or window.
 *
 *     cc -O2 -shared -fPIC -o verbs_loops.so verbs_loops.c -libverbs
 *
 * benchmarks/parity.py calls it (ctypes lets go of the GIL) in the same ranks as our loop, in blocks
 * that alternate with it. Each rank opens a pair, tells the other one its endpoint, and connects.
 *
 * All functions return 0 or -errno; -ETIMEDOUT when nothing came for 30 s.
 */
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { INLINE_MOST = 220, RX_DEPTH = 512, SEND_SIGNALS = 100, WRITE_SIGNALS = 16, ALIGNMENT = 4096 };

struct endpoint {
    uint64_t address;
    uint32_t qpn, rkey, mtu, lid;
    uint8_t gid[16];
};

struct pair {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_cq *send_cq, *recv_cq;
    struct ibv_qp *qp;
    struct ibv_mr *mr;
    char *out, *in;             /* nbytes each, in pages of their own */
    uint64_t nbytes;
    uint32_t port, gid_index, depth;
    int has_gid, sends;
    struct endpoint here, there;
    uint64_t received;          /* messages in all; its last byte is what a writer puts at the end */
    uint64_t sent;
};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Looks at the clock at few of the turns. */
static int late(uint64_t *turns, int64_t *until)
{
    if (++*turns & 0xfffff)
        return 0;
    if (*until == 0)
        *until = now_ns() + INT64_C(30000000000);
    return now_ns() > *until;
}

static int completed(struct ibv_cq *cq, int wanted)
{
    struct ibv_wc wc[WRITE_SIGNALS];
    uint64_t turns = 0;
    int64_t until = 0;
    while (wanted > 0) {
        int n = ibv_poll_cq(cq, wanted < WRITE_SIGNALS ? wanted : WRITE_SIGNALS, wc);
        if (n < 0 || (n == 0 && late(&turns, &until)))
            return n < 0 ? -EIO : -ETIMEDOUT;
        for (int i = 0; i < n; i++)
            if (wc[i].status != IBV_WC_SUCCESS)
                return -EIO;
        wanted -= n;
    }
    return 0;
}

static int post_receive(struct pair *p)
{
    struct ibv_sge sge = {(uintptr_t)p->in, (uint32_t)p->nbytes, p->mr->lkey};
    struct ibv_recv_wr wr = {.sg_list = &sge, .num_sge = 1}, *bad;
    return -ibv_post_recv(p->qp, &wr, &bad);
}

static int post(struct pair *p, int signalled)
{
    struct ibv_sge sge = {(uintptr_t)p->out, (uint32_t)p->nbytes, p->mr->lkey};
    struct ibv_send_wr wr = {.sg_list = &sge, .num_sge = 1}, *bad;
    wr.opcode = p->sends ? IBV_WR_SEND : IBV_WR_RDMA_WRITE;
    wr.send_flags = (signalled ? IBV_SEND_SIGNALED : 0) |
                    (p->nbytes <= INLINE_MOST ? IBV_SEND_INLINE : 0);
    wr.wr.rdma.remote_addr = p->there.address;
    wr.wr.rdma.rkey = p->there.rkey;
    return -ibv_post_send(p->qp, &wr, &bad);
}

/* ------------------------------------------------------------------ a pair */

static struct ibv_context *open_named(const char *name)
{
    int n = 0;
    struct ibv_device **devices = ibv_get_device_list(&n);
    struct ibv_context *context = NULL;
    for (int i = 0; i < n; i++)
        if (strcmp(ibv_get_device_name(devices[i]), name) == 0)
            context = ibv_open_device(devices[i]);
    if (devices)
        ibv_free_device_list(devices);
    return context;
}

static int look_at_port(struct pair *p)
{
    struct ibv_port_attr port;
    union ibv_gid gid;
    if (ibv_query_port(p->context, (uint8_t)p->port, &port))
        return -EIO;
    p->here.mtu = port.active_mtu;
    p->here.lid = port.lid;
    if (p->has_gid && ibv_query_gid(p->context, (uint8_t)p->port, (int)p->gid_index, &gid))
        return -EIO;
    if (p->has_gid)
        memcpy(p->here.gid, gid.raw, sizeof gid.raw);
    return 0;
}

static int make_memory(struct pair *p)
{
    size_t each = (p->nbytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    p->out = aligned_alloc(ALIGNMENT, 2 * each);
    if (!p->out)
        return -ENOMEM;
    memset(p->out, 0, 2 * each);
    p->in = p->out + each;
    p->mr = ibv_reg_mr(p->pd, p->out, 2 * each, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    return p->mr ? 0 : -errno;
}

int reference_close(struct pair *p)
{
    if (p->qp)
        ibv_destroy_qp(p->qp);
    if (p->send_cq)
        ibv_destroy_cq(p->send_cq);
    if (p->recv_cq)
        ibv_destroy_cq(p->recv_cq);
    if (p->mr)
        ibv_dereg_mr(p->mr);
    if (p->pd)
        ibv_dealloc_pd(p->pd);
    if (p->context)
        ibv_close_device(p->context);
    free(p->out);
    free(p);
    return 0;
}

/* gid_index < 0: the port is reached by its LID. */
int reference_open(const char *device, uint64_t port, int64_t gid_index, uint64_t nbytes,
                   uint64_t depth, uint64_t sends, struct pair **made, struct endpoint *endpoint)
{
    struct pair *p = *made = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    *p = (struct pair){.nbytes = nbytes, .port = (uint32_t)port, .gid_index = (uint32_t)gid_index,
                       .depth = (uint32_t)depth, .has_gid = gid_index >= 0, .sends = (int)sends};
    p->context = open_named(device);
    p->pd = p->context ? ibv_alloc_pd(p->context) : NULL;
    if (!p->pd)
        return -ENODEV;
    p->send_cq = ibv_create_cq(p->context, (int)depth + 1, NULL, NULL, 0);
    p->recv_cq = ibv_create_cq(p->context, RX_DEPTH, NULL, NULL, 0);
    if (!p->send_cq || !p->recv_cq)
        return -errno;
    struct ibv_qp_init_attr a = {
        .send_cq = p->send_cq, .recv_cq = p->recv_cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = p->depth, .max_recv_wr = RX_DEPTH, .max_send_sge = 1,
                .max_recv_sge = 1, .max_inline_data = nbytes <= INLINE_MOST ? INLINE_MOST : 0}};
    p->qp = ibv_create_qp(p->pd, &a);
    int rc = p->qp ? look_at_port(p) : -errno;
    if (rc == 0)
        rc = make_memory(p);
    if (rc == 0) {
        p->here.qpn = p->qp->qp_num;
        p->here.address = (uintptr_t)p->in;
        p->here.rkey = p->mr->rkey;
        *endpoint = p->here;
    }
    return rc;
}

static int to_rtr(struct pair *p)
{
    struct ibv_qp_attr a = {
        .qp_state = IBV_QPS_RTR, .dest_qp_num = p->there.qpn, .max_dest_rd_atomic = 1,
        .min_rnr_timer = 12, .ah_attr = {.dlid = (uint16_t)p->there.lid, .port_num = (uint8_t)p->port}};
    a.path_mtu = p->here.mtu < p->there.mtu ? p->here.mtu : p->there.mtu;
    if (p->has_gid) {
        a.ah_attr.is_global = 1;
        a.ah_attr.grh.hop_limit = 64;
        a.ah_attr.grh.sgid_index = (uint8_t)p->gid_index;
        memcpy(a.ah_attr.grh.dgid.raw, p->there.gid, sizeof p->there.gid);
    }
    return -ibv_modify_qp(p->qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                                     IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
                                     IBV_QP_MIN_RNR_TIMER);
}

/* Both ends must have done so before either sends. */
int reference_connect(struct pair *p, const struct endpoint *there)
{
    p->there = *there;
    struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = (uint8_t)p->port,
                               .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
    struct ibv_qp_attr rts = {.qp_state = IBV_QPS_RTS, .timeout = 16, .retry_cnt = 7,
                              .rnr_retry = 7, .max_rd_atomic = 1};
    int rc = -ibv_modify_qp(p->qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
                                          IBV_QP_ACCESS_FLAGS);
    for (int i = 0; rc == 0 && p->sends && i < RX_DEPTH; i++)
        rc = post_receive(p);
    if (rc == 0)
        rc = to_rtr(p);
    return rc ? rc : -ibv_modify_qp(p->qp, &rts, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                                 IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                                                 IBV_QP_MAX_QP_RD_ATOMIC);
}

/* ------------------------------------------------------------------ loops */

static int receive(struct pair *p)
{
    volatile char *last = p->in + p->nbytes - 1;
    char awaited = (char)++p->received;
    uint64_t turns = 0;
    int64_t until = 0;
    if (p->sends) {
        int rc = completed(p->recv_cq, 1);
        return rc ? rc : post_receive(p);
    }
    while (*last != awaited)
        if (late(&turns, &until))
            return -ETIMEDOUT;
    return 0;
}

/* As perftest has it: a write waits for its completion each time, a send for every hundredth. */
static int give(struct pair *p)
{
    int signalled = !p->sends || p->sent % SEND_SIGNALS == SEND_SIGNALS - 1;
    p->out[p->nbytes - 1] = (char)++p->sent;
    return post(p, signalled) ? -EIO : signalled;
}

int reference_ping(struct pair *p, uint64_t count, int64_t *start, int64_t *end)
{
    int rc = 0;
    for (uint64_t i = 0; i < count && rc >= 0; i++) {
        start[i] = now_ns();
        if ((rc = give(p)) > 0)
            rc = completed(p->send_cq, 1);
        if (rc == 0)
            rc = receive(p);
        end[i] = now_ns();
    }
    return rc;
}

int reference_pong(struct pair *p, uint64_t count)
{
    int rc = 0;
    for (uint64_t i = 0; i < count && rc >= 0; i++) {
        if ((rc = receive(p)) == 0 && (rc = give(p)) > 0)
            rc = completed(p->send_cq, 1);
    }
    return rc;
}

/* `count` windows of `depth` writes; the queue is kept full. The stamps are those of its first write
 * and of its last one's completion. The other end does nothing. */
int reference_write(struct pair *p, uint64_t count, int64_t *start, int64_t *end)
{
    uint64_t posted = 0, done = 0, total = count * p->depth, every = WRITE_SIGNALS;
    int rc = 0;
    if (p->depth % every)
        return -EINVAL;
    while (rc == 0 && done < total) {
        for (; rc == 0 && posted < total && posted - done < p->depth; posted++) {
            if (posted % p->depth == 0)
                start[posted / p->depth] = now_ns();
            rc = post(p, posted % every == every - 1);
        }
        if (rc == 0 && (rc = completed(p->send_cq, 1)) == 0 && (done += every) % p->depth == 0)
            end[done / p->depth - 1] = now_ns();
    }
    return rc;
}
