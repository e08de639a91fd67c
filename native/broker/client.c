/* What a client says outside of its data: END; and the content of records. See broker.h. */
#include "client.h"

/* One request with nothing else in flight; its answer in *a. */
static int ask(cb_client *client, int32_t broker, int16_t api, int32_t partition, broker_answer *a)
{
    const cb_engine *e = client->engine;
    uint8_t *slot = client->c->request[0].iov->iov_base;
    uint32_t correlation = client->correlations[broker];
    uint64_t nbytes = broker_put_request(slot, api, 0, (int32_t)correlation, partition, 0);
    cb_done done;
    int rc = client_post(client, broker, 0, nbytes);
    if (rc < 0)
        return rc;
    rc = e->ops->poll(e->self, &done, 1, client->timeout_ns);
    if (rc < 0)
        return client_engine_failed(client, rc, broker);
    if (rc == 0)
        return client_failed(client, -ETIMEDOUT, broker, "rank %d has not answered within %g s", broker,
                             (double)client->timeout_ns / 1e9);
    rc = client_answer(client, broker, 0, done.reply_nbytes, correlation, a);
    if (rc == 0 && a->error)
        rc = client_failed(client, -EREMOTEIO, broker, "rank %d refused a request: %s", broker,
                           broker_error_name(a->error));
    return rc;
}

int cb_client_round_trips(cb_client *client, uint32_t count, cb_times *times)
{
    broker_answer a = {0};
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        int64_t start = cb_now_ns();
        rc = ask(client, 0, BROKER_OFFSETS, 0, &a);
        cb_times_add(times, cb_now_ns() - start);
    }
    return rc;
}

int cb_client_end(cb_client *client)
{
    broker_answer a = {0};
    int rc = 0;
    for (uint32_t b = 0; rc == 0 && b < client->who.brokers; b++)
        rc = ask(client, (int32_t)b, BROKER_END, -1, &a);
    return rc;
}

int cb_consume_offsets(cb_consume_run *run)
{
    broker_answer a = {0};
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < run->npartitions; i++) {
        int32_t leader = client_leader(run->client, run->partitions[i]);
        rc = ask(run->client, leader, BROKER_OFFSETS, (int32_t)run->partitions[i], &a);
        run->offsets[i] = a.offset;
    }
    return rc;
}

/* ------------------------------------------------------------------ content */

static cb_iov rest_of(struct iovec *iov, const void *value, uint64_t nbytes, uint64_t skip)
{
    skip = skip < nbytes ? skip : nbytes;
    *iov = (struct iovec){(char *)(uintptr_t)value + skip, nbytes - skip};
    return (cb_iov){iov, 1, nbytes - skip};
}

void cb_record_fill(void *value, uint64_t nbytes, uint64_t skip, uint64_t seed, int32_t producer,
                    uint32_t partition, uint32_t partitions, uint64_t number)
{
    struct iovec iov;
    cb_iov message = rest_of(&iov, value, nbytes, skip);
    cb_fill(&message, seed, producer, number * partitions + partition);
}

int cb_record_verify(const void *value, uint64_t nbytes, uint64_t skip, uint64_t seed,
                     int32_t producer, uint32_t partition, uint32_t partitions, uint64_t number)
{
    struct iovec iov;
    uint32_t buffer;
    uint64_t offset;
    cb_iov message = rest_of(&iov, value, nbytes, skip);
    return cb_verify(&message, seed, producer, number * partitions + partition, &buffer, &offset);
}
