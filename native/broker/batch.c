/* Record batches: built in place, checked, read. */
#include "batch.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "crc32c.h"

enum {                          /* where the fields are */
    BASE_OFFSET = 0, BATCH_LENGTH = 8, LEADER_EPOCH = 12, MAGIC = 16, CRC = 17, ATTRIBUTES = CB_BATCH_CRC_FROM,
    LAST_OFFSET_DELTA = 23, BASE_TIMESTAMP = 27, MAX_TIMESTAMP = 35, PRODUCER_ID = 43,
    PRODUCER_EPOCH = 51, BASE_SEQUENCE = 53, RECORDS = 57
};

/* Bytes that batchLength counts before the records. */
#define COUNTED_HEADER (CB_BATCH_HEADER - CB_BATCH_LENGTH_END)

static void put16(uint8_t *p, int16_t v) { uint16_t x = htobe16((uint16_t)v); memcpy(p, &x, 2); }
static void put32(uint8_t *p, uint32_t v) { uint32_t x = htobe32(v); memcpy(p, &x, 4); }
static void put64(uint8_t *p, int64_t v) { uint64_t x = htobe64((uint64_t)v); memcpy(p, &x, 8); }
static int16_t get16(const uint8_t *p) { uint16_t x; memcpy(&x, p, 2); return (int16_t)be16toh(x); }
static uint32_t get32(const uint8_t *p) { uint32_t x; memcpy(&x, p, 4); return be32toh(x); }
static int64_t get64(const uint8_t *p) { uint64_t x; memcpy(&x, p, 8); return (int64_t)be64toh(x); }

/* ------------------------------------------------------------------ varints */

static uint64_t zigzag(int64_t v)
{
    return ((uint64_t)v << 1) ^ (uint64_t)(v >> 63);
}

static size_t varint_nbytes(int64_t v)
{
    return (size_t)(70 - __builtin_clzll(zigzag(v) | 1)) / 7;
}

static uint8_t *put_varint(uint8_t *p, int64_t v)
{
    uint64_t x = zigzag(v);
    for (; x >= 0x80; x >>= 7)
        *p++ = (uint8_t)(x | 0x80);
    *p++ = (uint8_t)x;
    return p;
}

/* NULL when it does not end before `end` or in ten bytes. */
static const uint8_t *get_varint(const uint8_t *p, const uint8_t *end, int64_t *v)
{
    uint64_t x = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (p == end)
            return NULL;
        x |= (uint64_t)(*p & 0x7f) << shift;
        if (!(*p++ & 0x80)) {
            *v = (int64_t)(x >> 1) ^ -(int64_t)(x & 1);
            return p;
        }
    }
    return NULL;
}

/* ------------------------------------------------------------------ building */

void cb_batch_begin(cb_batch *b, void *at, size_t capacity)
{
    *b = (cb_batch){.at = at, .capacity = capacity, .nbytes = CB_BATCH_HEADER,
                    .producer_id = -1, .producer_epoch = -1, .base_sequence = -1};
}

/* Timestamps may be anything: the difference is taken modulo 2^64, and so it is read. */
static int64_t since(int64_t timestamp, int64_t base)
{
    return (int64_t)((uint64_t)timestamp - (uint64_t)base);
}

/* Bytes behind the length of a record: attributes, key and headers take one each. */
static size_t body_nbytes(const cb_batch *b, int64_t timestamp, size_t nbytes)
{
    int64_t delta = b->records ? since(timestamp, b->base_timestamp) : 0;
    return 3 + varint_nbytes(delta) + varint_nbytes(b->records) + varint_nbytes((int64_t)nbytes) +
           nbytes;
}

size_t cb_batch_needs(const cb_batch *b, int64_t timestamp, size_t nbytes)
{
    size_t body = body_nbytes(b, timestamp, nbytes);
    return varint_nbytes((int64_t)body) + body;
}

uint8_t *cb_batch_place(cb_batch *b, int64_t timestamp, size_t nbytes)
{
    if (b->nbytes > b->capacity || nbytes > b->capacity || b->capacity > INT32_MAX)
        return NULL;
    size_t body = body_nbytes(b, timestamp, nbytes);
    if (varint_nbytes((int64_t)body) + body > b->capacity - b->nbytes)
        return NULL;
    if (b->records == 0)
        b->base_timestamp = b->max_timestamp = timestamp;
    else if (timestamp > b->max_timestamp)
        b->max_timestamp = timestamp;
    uint8_t *p = put_varint(b->at + b->nbytes, (int64_t)body);
    *p++ = 0;                                   /* attributes */
    p = put_varint(p, since(timestamp, b->base_timestamp));
    p = put_varint(p, b->records++);
    p = put_varint(p, -1);                      /* no key */
    p = put_varint(p, (int64_t)nbytes);
    p[nbytes] = 0;                              /* no headers */
    b->nbytes = (size_t)(p + nbytes + 1 - b->at);
    return p;
}

int cb_batch_add(cb_batch *b, int64_t timestamp, const void *value, size_t nbytes)
{
    uint8_t *to = cb_batch_place(b, timestamp, nbytes);
    if (!to)
        return -ENOSPC;
    if (nbytes > 0)
        memcpy(to, value, nbytes);
    return 0;
}

size_t cb_batch_seal(cb_batch *b)
{
    uint8_t *p = b->at;
    if (b->records == 0)
        return 0;
    cb_batch_set_base_offset(p, 0);
    put32(p + BATCH_LENGTH, (uint32_t)(b->nbytes - CB_BATCH_LENGTH_END));
    p[MAGIC] = 2;
    put16(p + ATTRIBUTES, 0);
    put32(p + LAST_OFFSET_DELTA, b->records - 1);
    put64(p + BASE_TIMESTAMP, b->base_timestamp);
    put64(p + MAX_TIMESTAMP, b->max_timestamp);
    put64(p + PRODUCER_ID, b->producer_id);
    put16(p + PRODUCER_EPOCH, b->producer_epoch);
    put32(p + BASE_SEQUENCE, (uint32_t)b->base_sequence);
    put32(p + RECORDS, b->records);
    put32(p + CRC, cb_crc32c(0, p + CB_BATCH_CRC_FROM, b->nbytes - CB_BATCH_CRC_FROM));
    return b->nbytes;
}

void cb_batch_set_base_offset(void *bytes, int64_t offset)
{
    put64((uint8_t *)bytes + BASE_OFFSET, offset);
    put32((uint8_t *)bytes + LEADER_EPOCH, 0);
}

/* ------------------------------------------------------------------ checking */

static int bad(cb_batch_info *info, int code, const char *problem)
{
    info->problem = problem;
    return code;
}

static void read_header(const uint8_t *p, cb_batch_info *info)
{
    info->base_offset = get64(p + BASE_OFFSET);
    info->base_timestamp = get64(p + BASE_TIMESTAMP);
    info->max_timestamp = get64(p + MAX_TIMESTAMP);
    info->producer_id = get64(p + PRODUCER_ID);
    info->base_sequence = (int32_t)get32(p + BASE_SEQUENCE);
    info->leader_epoch = (int32_t)get32(p + LEADER_EPOCH);
    info->producer_epoch = get16(p + PRODUCER_EPOCH);
    info->records = get32(p + RECORDS);
}

int cb_batch_header(const void *bytes, size_t nbytes, cb_batch_info *info)
{
    const uint8_t *p = bytes;
    *info = (cb_batch_info){0};
    if (nbytes < CB_BATCH_HEADER)
        return bad(info, -ENODATA, "not whole");
    uint32_t length = get32(p + BATCH_LENGTH);
    if (length < COUNTED_HEADER || length > INT32_MAX)
        return bad(info, -EBADMSG, "its length is none");
    info->nbytes = (uint64_t)length + CB_BATCH_LENGTH_END;
    read_header(p, info);
    if (p[MAGIC] != 2)
        return bad(info, -EBADMSG, "its magic is not 2");
    if (get16(p + ATTRIBUTES) != 0)
        return bad(info, -EBADMSG, "its attributes are not 0 (compression, transactions)");
    if (info->records == 0 || info->records > (length - COUNTED_HEADER) / CB_RECORD_LEAST)
        return bad(info, -EBADMSG, "its number of records does not fit its length");
    if (get32(p + LAST_OFFSET_DELTA) != info->records - 1)
        return bad(info, -EBADMSG, "its last offset does not fit its number of records");
    return 0;
}

uint32_t cb_batch_crc(const void *bytes)
{
    return get32((const uint8_t *)bytes + CRC);
}

int cb_batch_check(const void *bytes, size_t nbytes, cb_batch_info *info)
{
    const uint8_t *p = bytes;
    int rc = cb_batch_header(bytes, nbytes, info);
    if (rc < 0)
        return rc;
    if (info->nbytes > nbytes)
        return bad(info, -ENODATA, "not whole");
    if (cb_crc32c(0, p + CB_BATCH_CRC_FROM, info->nbytes - CB_BATCH_CRC_FROM) != cb_batch_crc(p))
        return bad(info, -EBADMSG, "wrong CRC");
    return 0;
}

/* ------------------------------------------------------------------ reading */

int cb_records_begin(cb_records *r, const void *bytes, size_t nbytes)
{
    int rc = cb_batch_header(bytes, nbytes, &r->info);
    if (rc < 0)
        return rc;
    if (r->info.nbytes > nbytes)
        return bad(&r->info, -ENODATA, "not whole");
    r->at = (const uint8_t *)bytes + CB_BATCH_HEADER;
    r->end = (const uint8_t *)bytes + r->info.nbytes;
    r->next = 0;
    return 0;
}

/* A field with its length before it; NULL when it goes beyond `end`. A length of -1: *field is NULL. */
static const uint8_t *get_field(const uint8_t *p, const uint8_t *end, const uint8_t **field,
                                uint64_t *nbytes)
{
    int64_t length;
    p = get_varint(p, end, &length);
    if (!p || length < -1 || length > end - p)
        return NULL;
    *field = length < 0 ? NULL : p;
    *nbytes = length < 0 ? 0 : (uint64_t)length;
    return p + *nbytes;
}

/* What is between a record's length and its end. */
static bool read_record(const uint8_t *p, const uint8_t *end, const cb_records *r, cb_record *record)
{
    int64_t timestamp, offset, headers;
    const uint8_t *key;
    uint64_t key_nbytes;
    if (p == end || !(p = get_varint(p + 1, end, &timestamp)) ||
        !(p = get_varint(p, end, &offset)) || offset != r->next)
        return false;
    if (!(p = get_field(p, end, &key, &key_nbytes)) ||
        !(p = get_field(p, end, &record->value, &record->nbytes)) ||
        !(p = get_varint(p, end, &headers)) || headers < 0 || (headers == 0 && p != end))
        return false;
    record->offset = (int64_t)((uint64_t)r->info.base_offset + (uint64_t)offset);
    record->timestamp = (int64_t)((uint64_t)r->info.base_timestamp + (uint64_t)timestamp);
    return true;
}

int cb_records_next(cb_records *r, cb_record *record)
{
    int64_t length;
    if (r->next == r->info.records)
        return r->at == r->end ? 0 : bad(&r->info, -EBADMSG, "bytes behind its last record");
    const uint8_t *p = get_varint(r->at, r->end, &length);
    if (!p || length < 0 || length > r->end - p || !read_record(p, p + length, r, record))
        return bad(&r->info, -EBADMSG, "a record does not fit");
    r->at = p + length;
    r->next++;
    return 1;
}
