/* Protocol gdr (TensorFlow's grpc+gdr): the owner says where a tensor is, who asked for it reads it,
 * and a write of nothing says that the owner's memory is free. With the lock. Part of engine.c. */
static void gdr_respond(engine *e, lane *a)
{
    conn *c = conn_of(e, a);
    a->out.key = new_index(e, a);
    add_note(c, &a->out_note, (note){.type = REMOTE_MEMORY_REGION, .of = a});
    pump(e, c);
}

static void take_memory_region(engine *e, peer *p, const message *m)
{
    lane *a = called(e, p, m->index);
    if (!a) {
        fail(e, -EPROTO, "rank %d describes a tensor that nobody asked for", (int)p->rank);
        return;
    }
    if (expect(e, a, m->nbytes) < 0)
        return;
    a->in.key = (uint32_t)m->step;
    add_transfer(conn_of(e, a),
                 (transfer){.cargo = CARGO_READ, .index = (uint32_t)(a - e->all),
                            .local = a->in.to, .lkey = a->in.mr ? a->in.mr->lkey : 0,
                            .nbytes = m->nbytes, .remote = m->address, .rkey = m->rkey}, &a->way);
}

/* The key goes in network byte order, as TensorFlow's does here and nowhere else. */
static void gdr_read(engine *e, conn *c, lane *a)
{
    c->kept--;
    post_imm(e, c, htobe32(a->in.key), CARGO_FREE, 0, NULL);
    count(&e->counters.frees, 1);
    land(e, a);
}

static void gdr_take_free(engine *e, peer *p, uint32_t imm)
{
    uint32_t key = be32toh(imm);
    lane *a = &p->asks[key & (2 * e->lanes - 1)];
    if (!a->out.put || a->out.key != key) {
        fail(e, -EPROTO, "rank %d frees a tensor that it was not told of", (int)p->rank);
        return;
    }
    e->sent_nbytes += a->out.nbytes;    /* the device sent them without being told to */
    offer_done(e, a);
}
