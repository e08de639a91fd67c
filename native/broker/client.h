/* What producers and consumers share: failing, one request at a time. */
#ifndef COMMBENCH_BROKER_CLIENT_H
#define COMMBENCH_BROKER_CLIENT_H

#include "broker.h"
#include "protocol.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#define POLL_MAX 16

static inline __attribute__((format(printf, 4, 5))) int client_failed(cb_client *client, int code,
                                                                      int32_t peer,
                                                                      const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(client->message, sizeof client->message, format, arguments);
    va_end(arguments);
    client->peer = peer;
    return code;
}

static inline int client_engine_failed(cb_client *client, int code, int32_t peer)
{
    const cb_engine *e = client->engine;
    return client_failed(client, code, peer, "%s", e->ops->last_error(e->self));
}

static inline int32_t client_leader(const cb_client *client, uint32_t partition)
{
    return (int32_t)(partition % client->who.brokers);
}

/* The answer in a reply slot, which has to be one to this request. */
static inline int client_answer(cb_client *client, int32_t broker, uint32_t slot, uint64_t nbytes,
                                uint32_t correlation, broker_answer *a)
{
    if (broker_read_answer(client->c->reply[slot].iov->iov_base, nbytes, a) < 0)
        return client_failed(client, -EPROTO, broker, "rank %d answered with %llu bytes that are no "
                             "answer", broker, (unsigned long long)nbytes);
    if ((uint32_t)a->correlation != correlation)
        return client_failed(client, -EPROTO, broker, "rank %d answered request %d where %u was "
                             "asked", broker, a->correlation, correlation);
    return 0;
}

/* Send the first nbytes of a request slot. -EAGAIN: not now. */
static inline int client_post(cb_client *client, int32_t broker, uint32_t slot, uint64_t nbytes)
{
    const cb_engine *e = client->engine;
    const cb_case *c = client->c;
    const cb_iov *request =
        cb_cut_of(&client->cuts[slot], c->request[slot].iov->iov_base, nbytes);
    int rc = e->ops->post(e->self, broker, slot, request, &c->reply[slot]);
    if (rc == 0)
        client->correlations[broker]++;
    return rc == -EAGAIN || rc == 0 ? rc : client_engine_failed(client, rc, broker);
}

#endif
