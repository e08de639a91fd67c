/* Protocol v2: the owner writes a tensor into the memory of who asked for it. With the lock. Part of
 * engine.c. */
static void v2_send(engine *e, lane *a)
{
    const offer *o = &a->out;
    conn *c = conn_of(e, a);
    add_transfer(c, (transfer){.cargo = CARGO_CONTENT, .index = (uint32_t)(a - e->all),
                               .local = o->from, .lkey = o->mr ? o->mr->lkey : 0,
                               .nbytes = o->nbytes, .remote = a->wish.address,
                               .rkey = a->wish.rkey, .imm = (uint32_t)a->wish.index}, &a->way);
    pump(e, c);
}

/* The application may write into its buffer while the other side gets ready for this one: TensorFlow
 * makes a copy, also of what is one already. */
static int make_clone(engine *e, offer *o)
{
    int rc = 0;
    o->cloned = true;
    if (o->nbytes == 0)
        return 0;
    if (!(o->clone = take_block(e, o->nbytes, &rc)))
        return rc;
    copy(e, o->clone->at, o->from, o->nbytes);
    o->from = o->clone->at;
    o->mr = o->clone->mr;
    return 0;
}

static void v2_respond(engine *e, lane *a)
{
    conn *c = conn_of(e, a);
    note n = {.type = META_DATA_UPDATE, .of = a};
    if (a->wish.nbytes == a->out.nbytes) {
        v2_send(e, a);
        return;
    }
    int rc = make_clone(e, &a->out);
    if (rc < 0) {
        fail(e, rc, "%s", e->region_error);
        n.type = ERROR_STATUS;
    }
    add_note(c, &a->out_note, n);
    pump(e, c);
}

static void take_metadata(engine *e, peer *p, const message *m)
{
    lane *a = called(e, p, m->index);
    if (!a) {
        fail(e, -EPROTO, "rank %d describes a tensor that nobody asked for", (int)p->rank);
        return;
    }
    *known_of(e, a) = m->nbytes;
    if (expect(e, a, m->nbytes) == 0)
        add_note(conn_of(e, a), &a->in_note, (note){.type = TENSOR_RE_REQUEST, .of = a});
}

static void take_re_request(engine *e, peer *p, const message *m)
{
    for (uint32_t i = 0; i < 2 * e->lanes; i++) {
        lane *a = &p->asks[i];
        if (a->out.cloned && a->wish.index == m->index) {
            a->out.cloned = false;
            a->wish.address = m->address;
            a->wish.rkey = m->rkey;
            v2_send(e, a);
            return;
        }
    }
    fail(e, -EPROTO, "rank %d asks again for a tensor that it did not ask for", (int)p->rank);
}

static void v2_take_content(engine *e, peer *p, uint32_t imm)
{
    lane *a = called(e, p, imm);
    if (a)
        land(e, a);
    else
        fail(e, -EPROTO, "rank %d sent a tensor that nobody asked for", (int)p->rank);
}
