/*
 * A producer: records into batches, batches to the leaders of their partitions, answers into stamps.
 *
 * As Kafka's sticky partitioner has it, records go to one partition until its batch leaves, and then to
 * the next partition. A batch leaves when it is full or its linger is over, with at most max_in_flight
 * requests to each broker; while none may leave, it goes on growing. The batches in memory are bounded
 * by the request slots: in a closed loop the next record waits for room before its start is stamped, in an
 * open loop the call of produce blocks, which is a part of its service time.
 */
#include "client.h"

#include <time.h>

#define NONE UINT32_MAX
#define SPIN_NS 100000          /* an open loop does not sleep closer than this to its next record */

#include "producer_state.h"

#include "producer_send.h"

#include "producer_answers.h"

/* ------------------------------------------------------------------ records */

static bool open_batch(producer *p, int64_t now)
{
    const cb_case *c = p->client->c;
    if (p->nfree == 0)
        return false;
    uint32_t at = p->free[--p->nfree];
    batch *b = &p->batches[at];
    uint8_t *slot = c->request[at].iov->iov_base;
    uint8_t *to = p->built ? p->built + at * p->run->batch_nbytes : slot + BROKER_REQUEST;
    cb_batch_begin(&b->b, to, p->run->batch_nbytes);
    b->b.producer_id = p->client->rank;
    b->b.producer_epoch = 0;
    b->b.base_sequence = (int32_t)(p->run->sent[p->partition] & INT32_MAX);
    b->state = FILLING;
    b->partition = p->partition;
    b->first = p->run->records;
    b->since_ns = now;
    p->filling = at;
    p->left++;
    return true;
}

static void write_value(producer *p, const batch *b, uint8_t *value, int64_t start)
{
    const cb_produce_run *run = p->run;
    bool stamped = run->flags & CB_PRODUCE_STAMP;
    if (run->flags & CB_PRODUCE_FILL)
        cb_record_fill(value, run->record_nbytes, stamped ? sizeof start : 0, run->seed,
                       p->client->rank, b->partition, p->client->who.partitions,
                       run->sent[b->partition]);
    else
        memcpy(value, p->template, run->record_nbytes);
    if (stamped)
        memcpy(value, &start, sizeof start);
}

/* Produce a record whose call began at `start`. 1: done; 0: there is no room. */
static int produce_one(producer *p, int64_t start, int64_t now)
{
    int64_t timestamp = (start + p->wall_ns) / 1000000;
    uint8_t *value = NULL;
    while (!value) {
        if (p->filling == NONE && !open_batch(p, now))
            return 0;
        batch *b = &p->batches[p->filling];
        if (b->b.records < p->most)
            value = cb_batch_place(&b->b, timestamp, p->run->record_nbytes);
        if (!value && b->b.records == 0)
            return client_failed(p->client, -EMSGSIZE, -1, "a record of %llu bytes does not fit a "
                                 "batch", (unsigned long long)p->run->record_nbytes);
        int rc = value ? 0 : close_batch(p);
        if (rc < 0)
            return rc;
    }
    batch *b = &p->batches[p->filling];
    write_value(p, b, value, start);
    b->start[b->b.records - 1] = start;
    p->run->sent[b->partition]++;
    p->run->records++;
    return 1;
}

static bool all_produced(const producer *p, int64_t now)
{
    const cb_produce_run *run = p->run;
    return p->refusal || (run->count ? run->records == run->count
                                     : now - p->origin >= run->warmup_ns + run->duration_ns);
}

/* Closed loop: until a batch is full. */
static int produce_freely(producer *p)
{
    uint32_t begun = p->filling;
    for (;;) {
        int64_t now = cb_now_ns();
        if ((p->over = all_produced(p, now)))
            return 0;
        int rc = produce_one(p, now, now);
        if (rc <= 0)
            return rc;
        if (begun == NONE)
            begun = p->filling;
        if (p->filling != begun)
            return 0;
    }
}

/* Open loop: all that is due. A call that finds no room has begun all the same. */
static int produce_due(producer *p)
{
    cb_produce_run *run = p->run;
    for (;;) {
        int64_t now = cb_now_ns();
        if ((p->over = all_produced(p, now)))
            return 0;
        if (now - p->origin < run->schedule[run->records])
            return 0;
        int rc = produce_one(p, p->called_ns ? p->called_ns : now, now);
        if (rc < 0)
            return rc;
        if (rc == 0) {
            run->blocked += p->called_ns == 0;
            p->called_ns = p->called_ns ? p->called_ns : now;
            return 0;
        }
        p->called_ns = 0;
    }
}

/* ------------------------------------------------------------------ the loop */

/* A batch that is not full leaves when its linger is over and a request may be sent. */
static int close_lingering(producer *p, int64_t now)
{
    if (p->filling == NONE)
        return 0;
    const batch *b = &p->batches[p->filling];
    const lane *l = lane_of(p, b);
    bool may = l->head == NONE && l->in_flight < p->run->max_in_flight;
    bool due = p->over || now - b->since_ns >= p->run->linger_ns;
    return b->b.records > 0 && due && (may || p->over) ? close_batch(p) : 0;
}

/* How long nothing has to be done unless an answer comes. */
static int64_t patience(producer *p)
{
    int64_t now = cb_now_ns(), wait = p->client->timeout_ns;
    const cb_produce_run *run = p->run;
    bool room = p->filling != NONE || p->nfree > 0;
    if (!p->over && room && !run->schedule)
        return 0;
    if (!p->over && room) {
        int64_t until = p->origin + run->schedule[run->records] - now;
        wait = until < wait ? until : wait;
    }
    if (p->filling != NONE && p->lanes[client_leader(p->client,
                                       p->batches[p->filling].partition)].in_flight <
                                  run->max_in_flight) {
        int64_t until = p->batches[p->filling].since_ns + run->linger_ns - now;
        wait = until < wait ? until : wait;
    }
    return wait > SPIN_NS ? wait - SPIN_NS : 0;
}

static int turn(producer *p)
{
    int rc = 0;
    if (!p->over)
        rc = p->run->schedule ? produce_due(p) : produce_freely(p);
    if (rc == 0)
        rc = close_lingering(p, cb_now_ns());
    if (rc == 0)
        rc = send_all(p);
    if (rc < 0 || (p->over && p->left == 0))
        return rc;
    return reap(p, patience(p));
}

int cb_produce(cb_produce_run *run)
{
    producer p;
    int rc = begin(&p, run);
    p.origin = cb_now_ns();
    while (rc == 0 && !(p.over && p.left == 0))
        rc = turn(&p);
    end(&p);
    return rc == 0 && p.refusal ? -EREMOTEIO : rc;
}
