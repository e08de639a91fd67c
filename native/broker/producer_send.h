/* Stamps, requests, and batches that may leave. Part of producer.c. */
static lane *lane_of(producer *p, const batch *b)
{
    return &p->lanes[client_leader(p->client, b->partition)];
}

/* Records are acknowledged in their order, so those of a window are consecutive. */
static void in_window(producer *p, int64_t ns)
{
    cb_produce_run *run = p->run;
    p->greatest = ns > p->greatest ? ns : p->greatest;
    if (run->counted % run->window < run->window - 1)
        return;
    cb_times_add(&run->windows, p->greatest);
    p->greatest = 0;
}

/* The record's times; only those that are no warm-up count. */
static void record_done(producer *p, const batch *b, uint32_t i, int64_t now)
{
    cb_produce_run *run = p->run;
    uint64_t number = b->first + i;
    int64_t start = b->start[i];
    int64_t intended = run->schedule ? p->origin + run->schedule[number] : start;
    if (number < run->warmup || start - p->origin < run->warmup_ns)
        return;
    if (run->counted < run->keep) {
        run->intended[run->counted] = intended;
        run->start[run->counted] = start;
        run->end[run->counted] = now;
    }
    cb_times_add(&run->latency, now - start);
    if (run->window)
        in_window(p, now - start);
    if (run->schedule) {
        cb_times_add(&run->delay, start - intended);
        cb_times_add(&run->response, now - intended);
    }
    if (run->counted++ == 0)
        run->first_ns = start;
    run->counted_nbytes += run->record_nbytes;
    run->last_ns = now;
}

static void acknowledged(producer *p, batch *b, int64_t now)
{
    for (uint32_t i = 0; i < b->b.records; i++)
        record_done(p, b, i, now);
    p->run->acked += b->b.records;
}

static void give_back(producer *p, uint32_t at)
{
    p->batches[at].state = FREE;
    p->free[p->nfree++] = at;
    p->left--;
}

/* As answer.h has it for the broker: Kafka's producer writes the length, the header and the batch to its
 * channel, and each is copied into the channel buffer. It leaves at the end of the producer's turn,
 * which has one full batch at most. */
static void write_request(producer *p, const batch *b, uint8_t *slot, const uint8_t *head)
{
    memcpy(slot, head, 4);
    memcpy(slot + 4, head + 4, BROKER_REQUEST - 4);
    memcpy(slot + BROKER_REQUEST, b->b.at, b->nbytes);
    p->run->copied += BROKER_REQUEST + b->nbytes;
}

static int send_one(producer *p, int32_t broker, uint32_t at)
{
    batch *b = &p->batches[at];
    lane *l = &p->lanes[broker];
    uint8_t *slot = p->client->c->request[at].iov->iov_base, head[BROKER_REQUEST];
    b->correlation = p->client->correlations[broker];
    uint32_t nbytes = broker_put_request(p->built ? head : slot, BROKER_PRODUCE,
                                         (int16_t)p->run->acks, (int32_t)b->correlation,
                                         (int32_t)b->partition, (uint32_t)b->nbytes);
    if (p->built)
        write_request(p, b, slot, head);
    int rc = client_post(p->client, broker, at, nbytes);
    if (rc < 0)
        return rc;
    b->posted_ns = cb_now_ns();
    b->state = FLYING;
    b->next = NONE;
    if (l->first == NONE)
        l->first = at;
    else
        p->batches[l->last].next = at;
    l->last = at;
    l->in_flight++;
    p->run->batches++;
    p->run->nbytes += b->nbytes;
    if (p->run->acks == CB_ACKS_NONE)
        acknowledged(p, b, b->posted_ns);
    return 0;
}

static int send_all(producer *p)
{
    for (uint32_t i = 0; i < p->client->who.brokers; i++) {
        lane *l = &p->lanes[i];
        while (l->head != NONE && l->in_flight < p->run->max_in_flight) {
            uint32_t at = l->head, next = p->batches[at].next;
            int rc = send_one(p, (int32_t)i, at);
            if (rc == -EAGAIN)
                break;
            if (rc < 0)
                return rc;
            l->head = next;
        }
    }
    return 0;
}

/* The batch that is being filled may leave; the next record begins another, of the next partition. */
static int close_batch(producer *p)
{
    uint32_t at = p->filling;
    batch *b = &p->batches[at];
    lane *l = lane_of(p, b);
    b->nbytes = cb_batch_seal(&b->b);
    b->state = QUEUED;
    b->next = NONE;
    if (l->head == NONE)
        l->head = at;
    else
        p->batches[l->tail].next = at;
    l->tail = at;
    p->filling = NONE;
    p->partition = (p->partition + 1) % p->client->who.partitions;
    return p->run->flags & CB_PRODUCE_EAGER ? send_all(p) : 0;
}
