/*
 * protocol.h: what producers, followers and consumers say to a broker, inside the payload of a
 * channel's request. In Kafka's manner: big endian, and the length first, which has to agree with what
 * arrived.
 *
 *   request   0 length int32 (bytes behind this field)   4 api int16   6 acks int16
 *             8 correlation int32   12 partition int32   16 body
 *             PRODUCE: one record batch (batch.h)
 *             FETCH: 16 offset int64   24 most bytes int32   28 reserved int32
 *   answer    0 length int32   4 correlation int32   8 error int16   10 flags int16
 *             12 partition int32   16 offset int64   24 high watermark int64   32 whole batches
 *             (of a refused PRODUCE: why, for people)
 *             offset: of PRODUCE the first record's, of FETCH the log's next, of OFFSETS where the log
 *             ended when this pass began
 *
 * Correlations of a rank count from 0 without a gap, over all its requests to one broker: a broker takes
 * requests up in that order, whatever the order of the channel. With acks=0 the answer to PRODUCE has no
 * bytes at all. Errors have Kafka's numbers.
 */
#ifndef COMMBENCH_BROKER_PROTOCOL_H
#define COMMBENCH_BROKER_PROTOCOL_H

#include <stdint.h>
#include <string.h>

enum { BROKER_PRODUCE = 0, BROKER_FETCH = 1, BROKER_OFFSETS = 2, BROKER_END = 3 };
enum { BROKER_REQUEST = 16, BROKER_FETCH_REQUEST = 32, BROKER_ANSWER = 32, BROKER_REASON = 200 };

enum {
    BROKER_OK = 0,
    BROKER_OFFSET_OUT_OF_RANGE = 1,
    BROKER_CORRUPT_MESSAGE = 2,
    BROKER_UNKNOWN_PARTITION = 3,
    BROKER_NOT_LEADER = 6,
    BROKER_MESSAGE_TOO_LARGE = 10,
    BROKER_INVALID_ACKS = 21,
    BROKER_UNSUPPORTED = 35,
    BROKER_INVALID_REQUEST = 42,
    BROKER_STORAGE = 56
};

enum { BROKER_ENDED = 1 };      /* flag: every producer has ended */

typedef struct broker_request {
    int16_t api, acks;
    int32_t correlation, partition;
    int64_t offset;             /* FETCH */
    uint32_t most;
    uint8_t *body;
    uint32_t nbody;
} broker_request;

typedef struct broker_answer {
    int32_t correlation, partition;
    int16_t error, flags;
    int64_t offset, high_watermark;
} broker_answer;

static inline uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t get32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap32(v);    /* of a little-endian host, as everything here is */
}

static inline uint64_t get64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap64(v);
}

static inline void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void put32(uint8_t *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    memcpy(p, &v, sizeof v);
}

static inline void put64(uint8_t *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    memcpy(p, &v, sizeof v);
}

/* The header of a request whose body of nbody bytes follows it; returns the bytes of the whole. */
static inline uint32_t broker_put_request(uint8_t *p, int16_t api, int16_t acks,
                                          int32_t correlation, int32_t partition, uint32_t nbody)
{
    put32(p, BROKER_REQUEST - 4 + nbody);
    put16(p + 4, (uint16_t)api);
    put16(p + 6, (uint16_t)acks);
    put32(p + 8, (uint32_t)correlation);
    put32(p + 12, (uint32_t)partition);
    return BROKER_REQUEST + nbody;
}

static inline uint32_t broker_put_fetch(uint8_t *p, int32_t correlation, int32_t partition,
                                        int64_t offset, uint32_t most)
{
    put64(p + 16, (uint64_t)offset);
    put32(p + 24, most);
    put32(p + 28, 0);
    return broker_put_request(p, BROKER_FETCH, 0, correlation, partition, 16);
}

/* Reads what arrived, of nbytes. BROKER_OK, or BROKER_INVALID_REQUEST when it is too short or its length
 * lies; *r then has what could be read, with a correlation of -1 where even that could not. */
static inline int broker_read_request(uint8_t *p, uint64_t nbytes, broker_request *r)
{
    memset(r, 0, sizeof *r);
    r->api = -1;
    r->correlation = r->partition = -1;
    if (nbytes < BROKER_REQUEST)
        return BROKER_INVALID_REQUEST;
    r->api = (int16_t)get16(p + 4);
    r->acks = (int16_t)get16(p + 6);
    r->correlation = (int32_t)get32(p + 8);
    r->partition = (int32_t)get32(p + 12);
    if ((uint64_t)get32(p) + 4 != nbytes)
        return BROKER_INVALID_REQUEST;
    r->body = p + BROKER_REQUEST;
    r->nbody = (uint32_t)(nbytes - BROKER_REQUEST);
    if (r->api != BROKER_FETCH)
        return BROKER_OK;
    if (r->nbody != BROKER_FETCH_REQUEST - BROKER_REQUEST)
        return BROKER_INVALID_REQUEST;
    r->offset = (int64_t)get64(p + 16);
    r->most = get32(p + 24);
    return BROKER_OK;
}

static inline uint32_t broker_put_answer(uint8_t *p, const broker_answer *a, uint32_t nbody)
{
    put32(p, BROKER_ANSWER - 4 + nbody);
    put32(p + 4, (uint32_t)a->correlation);
    put16(p + 8, (uint16_t)a->error);
    put16(p + 10, (uint16_t)a->flags);
    put32(p + 12, (uint32_t)a->partition);
    put64(p + 16, (uint64_t)a->offset);
    put64(p + 24, (uint64_t)a->high_watermark);
    return BROKER_ANSWER + nbody;
}

/* 0, or -1 when these bytes are no answer: too few, or a length that lies. */
static inline int broker_read_answer(const uint8_t *p, uint64_t nbytes, broker_answer *a)
{
    if (nbytes < BROKER_ANSWER || (uint64_t)get32(p) + 4 != nbytes)
        return -1;
    a->correlation = (int32_t)get32(p + 4);
    a->error = (int16_t)get16(p + 8);
    a->flags = (int16_t)get16(p + 10);
    a->partition = (int32_t)get32(p + 12);
    a->offset = (int64_t)get64(p + 16);
    a->high_watermark = (int64_t)get64(p + 24);
    return 0;
}

static inline const char *broker_error_name(int error)
{
    switch (error) {
    case BROKER_OK: return "none";
    case BROKER_OFFSET_OUT_OF_RANGE: return "OFFSET_OUT_OF_RANGE";
    case BROKER_CORRUPT_MESSAGE: return "CORRUPT_MESSAGE";
    case BROKER_UNKNOWN_PARTITION: return "UNKNOWN_TOPIC_OR_PARTITION";
    case BROKER_NOT_LEADER: return "NOT_LEADER_OR_FOLLOWER";
    case BROKER_MESSAGE_TOO_LARGE: return "MESSAGE_TOO_LARGE";
    case BROKER_INVALID_ACKS: return "INVALID_REQUIRED_ACKS";
    case BROKER_UNSUPPORTED: return "UNSUPPORTED_VERSION";
    case BROKER_INVALID_REQUEST: return "INVALID_REQUEST";
    case BROKER_STORAGE: return "KAFKA_STORAGE_ERROR";
    default: return "an unknown error";
    }
}

#endif
