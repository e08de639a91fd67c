/* What comes: control messages, ACKs, content, and completions of ours. With the lock. Part of
 * engine.c. */

static void take_tensor_request(engine *e, peer *p, const message *m)
{
    uint64_t place = m->step % e->step;
    bool request = is_named(m, p->keys[OUR_REQUEST], place);
    if (!request && !is_named(m, p->keys[OUR_REPLY], place)) {
        if (!is_old(p, m))
            fail(e, -EPROTO, "rank %d asks for a tensor that is none of this case", (int)p->rank);
        return;
    }
    lane_of(e, p, request, m->step)->wish = (wish){
        m->index, m->address, m->data_type == DT_INVALID ? NO_METADATA : m->nbytes, m->rkey};
    if (!request)
        asked_for_reply(e, p, m->step);
    else if (asked_for_request(e, p, m->step) < 0)
        fail(e, -EPROTO, "rank %d asks for its requests out of order", (int)p->rank);
}

static void take_named(engine *e, peer *p, const message *m)
{
    if (m->type == TENSOR_REQUEST)
        take_tensor_request(e, p, m);
    else if (m->type == META_DATA_UPDATE && e->o.protocol == CB_VERBS_V2)
        take_metadata(e, p, m);
    else if (m->type == TENSOR_RE_REQUEST && e->o.protocol == CB_VERBS_V2)
        take_re_request(e, p, m);
    else if (m->type == REMOTE_MEMORY_REGION && e->o.protocol == CB_VERBS_GDR)
        take_memory_region(e, p, m);
    else if (m->type >= BUFFER_REQUEST && m->type <= BUFFER_IDLE && e->o.protocol == CB_VERBS_V1)
        take_buffer_message(e, p, m);
    else
        fail(e, -EPROTO, "a message of rank %d is none of this protocol", (int)p->rank);
}

static void take_message(engine *e, conn *c, peer *p)
{
    message m;
    bool good = read_message(c->rx, &m);
    c->acks++;
    if (!good)
        fail(e, -EPROTO, "a message of rank %d cannot be read", (int)c->rank);
    else if (m.type == ERROR_STATUS)
        fail(e, -EIO, "rank %d: %.*s", (int)c->rank, (int)(m.status_nbytes < 200 ? m.status_nbytes
                                                           : 200), m.status);
    else if (p)
        take_named(e, p, &m);
}

static void take_content(engine *e, conn *c, peer *p, uint32_t imm)
{
    if (!p)
        fail(e, -EPROTO, "rank %d sent a tensor that nobody asked for", (int)c->rank);
    else if (e->o.protocol == CB_VERBS_V1)
        v1_take_content(e, p, imm);
    else if (e->o.protocol == CB_VERBS_GDR)
        gdr_take_free(e, p, imm);
    else
        v2_take_content(e, p, imm);
}

/* A tensor was put and the peer asks for it. */
static void respond(engine *e, lane *a)
{
    if (e->o.protocol == CB_VERBS_V1)
        v1_respond(e, a);
    else if (e->o.protocol == CB_VERBS_GDR)
        gdr_respond(e, a);
    else
        v2_respond(e, a);
}

/* ------------------------------------------------------------------ completions */

static void transfer_done(engine *e, conn *c, transfer *t)
{
    if (t->cargo == CARGO_READ) {
        gdr_read(e, c, &e->all[t->index]);
    } else if (t->cargo == CARGO_CONTENT) {
        offer_done(e, &e->all[t->index]);
    } else {
        e->buffers[t->index].local_busy = false;
        send_next(e, &e->buffers[t->index]);
    }
}

static void take_part(engine *e, conn *c, enum cargo cargo, uint32_t index, bool good)
{
    transfer *t = cargo == CARGO_BUFFER ? &e->buffers[index].way : &e->all[index].way;
    e->flying--;
    if (--t->flying == 0 && t->posted == t->nbytes && good)
        transfer_done(e, c, t);
}

static bool means_gone(enum ibv_wc_status status)
{
    return status == IBV_WC_RETRY_EXC_ERR || status == IBV_WC_RNR_RETRY_EXC_ERR ||
           status == IBV_WC_WR_FLUSH_ERR || status == IBV_WC_REM_ABORT_ERR ||
           status == IBV_WC_RESP_TIMEOUT_ERR;
}

/* A queue pair that failed flushes all that it has; what counts is the first reason. */
static void lose(engine *e, conn *c, enum ibv_wc_status status)
{
    c->lost = true;
    fail(e, means_gone(status) ? -ECONNRESET : -EIO, "rank %d %s (%s)", (int)c->rank,
         means_gone(status) ? "is gone" : "and this one failed to communicate",
         ibv_wc_status_str(status));
}

static void take_sent(engine *e, conn *c, const struct ibv_wc *wc)
{
    enum cargo cargo = (enum cargo)(wc->wr_id >> 60);
    c->used--;
    if (cargo == CARGO_MESSAGE)
        c->local_busy = false;
    else if (cargo >= CARGO_CONTENT)
        take_part(e, c, cargo, (uint32_t)wc->wr_id, wc->status == IBV_WC_SUCCESS);
}

static void take_completion(engine *e, const struct ibv_wc *wc)
{
    conn *c = &e->conns[wc->wr_id >> 32 & 0xffffff];
    peer *p = peer_of(e, c->rank);
    bool failed = wc->status != IBV_WC_SUCCESS;
    if (failed)
        lose(e, c, wc->status);
    if (wc->wr_id & RECEIVED) {
        if (failed)
            return;
        if (wc->opcode == IBV_WC_RECV)
            c->pinged = true;
        else if (wc->imm_data == ACK_IMM)
            c->remote_busy = false;
        else if (wc->imm_data == MESSAGE_IMM)
            take_message(e, c, p);
        else
            take_content(e, c, p, wc->imm_data);
        if (wc->opcode != IBV_WC_RECV)
            post_receive(e, c, NULL);
    } else {
        take_sent(e, c, wc);
    }
    pump(e, c);
}
