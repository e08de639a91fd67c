/*
 * A consumer: reads partitions by offset, one FETCH for each in flight, and checks what it reads: offsets
 * and, of each producer in each partition, sequence numbers without a gap or a repetition.
 */
#include "client.h"

typedef struct reader {         /* of a partition */
    uint32_t partition, correlation;
    int64_t offset;
    int64_t posted_ns;
    bool asking, done;
    uint64_t *sequences;        /* by producer: the next one */
} reader;

typedef struct consumer {
    cb_consume_run *run;
    cb_client *client;
    reader *readers;
    uint64_t *sequences;
    uint32_t asking, left;
} consumer;

static int begin(consumer *k, cb_consume_run *run)
{
    cb_client *client = run->client;
    uint32_t producers = client->who.producers;
    *k = (consumer){.run = run, .client = client, .left = run->npartitions};
    if (run->npartitions > client->c->nrequest)
        return client_failed(client, -EINVAL, -1, "a slot is needed for each partition");
    k->readers = calloc((size_t)run->npartitions + 1, sizeof *k->readers);
    k->sequences = calloc((size_t)run->npartitions * producers + 1, sizeof *k->sequences);
    if (!k->readers || !k->sequences)
        return client_failed(client, -ENOMEM, -1, "out of memory");
    for (uint32_t i = 0; i < run->npartitions; i++)
        k->readers[i] = (reader){.partition = run->partitions[i], .offset = run->offsets[i],
                                 .sequences = k->sequences + (size_t)i * producers};
    return 0;
}

static void end(consumer *k)
{
    for (uint32_t i = 0; k->readers && i < k->run->npartitions; i++)
        k->run->offsets[i] = k->readers[i].offset;
    free(k->readers);
    free(k->sequences);
}

static int fetch(consumer *k, uint32_t at)
{
    reader *r = &k->readers[at];
    cb_client *client = k->client;
    int32_t leader = client_leader(client, r->partition);
    uint32_t most = (uint32_t)(client->c->reply[at].nbytes - BROKER_ANSWER);
    r->correlation = client->correlations[leader];
    uint32_t nbytes = broker_put_fetch(client->c->request[at].iov->iov_base,
                                       (int32_t)r->correlation, (int32_t)r->partition, r->offset,
                                       most);
    int rc = client_post(client, leader, at, nbytes);
    if (rc < 0)
        return rc == -EAGAIN ? 0 : rc;
    r->asking = true;
    r->posted_ns = cb_now_ns();
    k->asking++;
    k->run->fetches++;
    if (k->run->first_ns == 0)
        k->run->first_ns = r->posted_ns;
    return 0;
}

/* ------------------------------------------------------------------ what was read */

static int check_sequence(consumer *k, const reader *r, const cb_batch_info *info, uint64_t next)
{
    int32_t producer = (int32_t)info->producer_id;
    if (info->base_sequence == (int32_t)(next & INT32_MAX))
        return 0;
    return client_failed(k->client, -EBADMSG, producer, "partition %u: after record %llu of rank %d came "
                         "record %d: records were lost, doubled or reordered", r->partition,
                         (unsigned long long)next - 1, producer, info->base_sequence);
}

static int check_record(consumer *k, const reader *r, const cb_record *record, int32_t producer,
                        uint64_t number, int64_t now)
{
    cb_consume_run *run = k->run;
    uint64_t skip = run->stamped ? sizeof(int64_t) : 0;
    if (record->nbytes != run->record_nbytes)
        return client_failed(k->client, -EBADMSG, producer, "partition %u: record %llu of rank %d has "
                             "%llu bytes instead of %llu", r->partition,
                             (unsigned long long)number, producer,
                             (unsigned long long)record->nbytes,
                             (unsigned long long)run->record_nbytes);
    if (run->stamped && run->end_to_end.counts) {
        int64_t start;
        memcpy(&start, record->value, sizeof start);
        cb_times_add(&run->end_to_end, now - start);
    }
    if (!run->verify)
        return 0;
    if (cb_record_verify(record->value, record->nbytes, skip, run->seed, producer, r->partition,
                         k->client->who.partitions, number) < 0)
        return client_failed(k->client, -EBADMSG, producer, "partition %u: record %llu of rank %d "
                             "differs from what was produced", r->partition,
                             (unsigned long long)number, producer);
    run->validated++;
    return 0;
}

static int read_batch(consumer *k, reader *r, const uint8_t *bytes, uint64_t nbytes, uint64_t *whole,
                      int64_t now)
{
    const cb_cluster *who = &k->client->who;
    cb_records records;
    cb_record record;
    int rc = k->run->verify ? cb_batch_check(bytes, nbytes, &records.info) : 0;
    if (rc == 0)
        rc = cb_records_begin(&records, bytes, nbytes);
    if (rc < 0)
        return client_failed(k->client, -EBADMSG, client_leader(k->client, r->partition),
                             "partition %u: at offset %lld came no whole batch", r->partition,
                             (long long)r->offset);
    const cb_batch_info *info = &records.info;
    int64_t producer = info->producer_id - who->brokers;
    *whole = info->nbytes;
    if (info->base_offset > r->offset || producer < 0 || producer >= who->producers)
        return client_failed(k->client, -EBADMSG, -1, "partition %u: offset %lld was asked for and a "
                             "batch of producer %lld at offset %lld came", r->partition,
                             (long long)r->offset, (long long)info->producer_id,
                             (long long)info->base_offset);
    r->offset = info->base_offset + info->records;
    if (k->run->only >= 0 && info->producer_id != k->run->only)
        return 0;
    uint64_t *next = &r->sequences[producer];
    rc = check_sequence(k, r, info, *next);
    while (rc == 0 && (rc = cb_records_next(&records, &record)) == 1)
        rc = check_record(k, r, &record, (int32_t)info->producer_id, (*next)++, now);
    k->run->records += info->records;
    k->run->nbytes += info->records * k->run->record_nbytes;
    return rc == -EBADMSG && !k->client->message[0]
               ? client_failed(k->client, rc, -1, "partition %u: a batch at offset %lld cannot be read",
                               r->partition, (long long)info->base_offset)
               : rc;
}

static bool read_all(const consumer *k, const reader *r, const broker_answer *a)
{
    const cb_consume_run *run = k->run;
    if (run->only < 0)
        return (a->flags & BROKER_ENDED) && r->offset >= a->offset;
    return r->sequences[run->only - (int32_t)k->client->who.brokers] >=
           run->expected[r->partition];
}

static uint64_t missing(const consumer *k, const reader *r)
{
    const cb_consume_run *run = k->run;
    return run->expected[r->partition] -
           r->sequences[run->only - (int32_t)k->client->who.brokers];
}

/* All that is there was read, and more of ours will not come: we have been told that it is there. */
static bool is_lost(const consumer *k, const reader *r, const broker_answer *a)
{
    return k->run->only >= 0 && r->offset >= a->offset && a->high_watermark >= a->offset;
}

static int take(consumer *k, uint32_t at, uint64_t nbytes)
{
    reader *r = &k->readers[at];
    cb_client *client = k->client;
    int32_t leader = client_leader(client, r->partition);
    const uint8_t *bytes = client->c->reply[at].iov->iov_base;
    broker_answer a = {0};
    int rc = client_answer(client, leader, at, nbytes, r->correlation, &a);
    r->asking = false;
    k->asking--;
    if (rc < 0)
        return rc;
    if (a.error)
        return client_failed(client, -EREMOTEIO, leader, "rank %d refused a FETCH of partition %u at "
                             "offset %lld: %s", leader, r->partition, (long long)r->offset,
                             broker_error_name(a.error));
    int64_t now = cb_now_ns();
    for (uint64_t from = BROKER_ANSWER, whole = 0; rc == 0 && from < nbytes; from += whole) {
        rc = read_batch(k, r, bytes + from, nbytes - from, &whole, now);
        k->run->last_ns = now;
    }
    if (rc == 0 && (r->done = read_all(k, r, &a)))
        k->left--;
    else if (rc == 0 && nbytes == BROKER_ANSWER && is_lost(k, r, &a))
        rc = client_failed(client, -EBADMSG, leader, "partition %u ends at offset %lld and %llu records "
                           "of rank %d are not in it", r->partition, (long long)a.offset,
                           (unsigned long long)missing(k, r), k->run->only);
    return rc;
}

/* ------------------------------------------------------------------ the loop */

static int late(consumer *k)
{
    int64_t now = cb_now_ns();
    for (uint32_t i = 0; i < k->run->npartitions; i++) {
        const reader *r = &k->readers[i];
        int32_t leader = client_leader(k->client, r->partition);
        if (r->asking && now - r->posted_ns > k->client->timeout_ns)
            return client_failed(k->client, -ETIMEDOUT, leader, "rank %d has not answered a FETCH of "
                                 "partition %u within %g s", leader, r->partition,
                                 (double)k->client->timeout_ns / 1e9);
    }
    return 0;
}

static int turn(consumer *k)
{
    const cb_engine *e = k->client->engine;
    cb_done done[POLL_MAX];
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < k->run->npartitions; i++)
        if (!k->readers[i].asking && !k->readers[i].done)
            rc = fetch(k, i);
    if (rc < 0)
        return rc;
    int n = e->ops->poll(e->self, done, POLL_MAX, k->client->timeout_ns);
    if (n <= 0)
        return n < 0 ? client_engine_failed(k->client, n, -1) : late(k);
    for (int i = 0; rc == 0 && i < n; i++) {
        if (done[i].ticket >= k->run->npartitions)
            return client_failed(k->client, -EPROTO, -1,
                                 "the engine completed a ticket that was not posted");
        rc = take(k, (uint32_t)done[i].ticket, done[i].reply_nbytes);
    }
    return rc;
}

int cb_consume(cb_consume_run *run)
{
    consumer k;
    int rc = begin(&k, run);
    for (uint32_t i = 0; rc == 0 && run->only >= 0 && i < run->npartitions; i++)
        if (run->expected[k.readers[i].partition] == 0) {
            k.readers[i].done = true;   /* none of ours went there */
            k.left--;
        }
    while (rc == 0 && (k.left > 0 || k.asking > 0))
        rc = turn(&k);
    end(&k);
    return rc;
}
