/*
 * batch.h: a record batch as Kafka has it on the wire and on disk (magic 2), built in place, checked
 * and read. Big endian:
 *
 *    0 baseOffset int64       8 batchLength int32 (bytes behind this field)
 *   12 partitionLeaderEpoch   16 magic int8 = 2    17 crc uint32: CRC-32C from attributes to the end
 *   21 attributes int16      23 lastOffsetDelta int32
 *   27 baseTimestamp int64   35 maxTimestamp int64
 *   43 producerId int64      51 producerEpoch int16  53 baseSequence int32   57 records int32
 *   61 records: length varint, attributes int8, timestampDelta varint, offsetDelta varint,
 *      keyLength varint, key, valueLength varint, value, headers varint, ...  (varints are zigzag)
 *
 * What is built here has values only: no key, no headers, no compression. baseOffset and
 * partitionLeaderEpoch lie outside the CRC, so that a broker sets them without another pass.
 * Timestamps are taken as they are; Kafka's are milliseconds since 1970.
 */
#ifndef COMMBENCH_BATCH_H
#define COMMBENCH_BATCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CB_BATCH_HEADER 61u     /* bytes before the records */
#define CB_BATCH_LENGTH_END 12u /* batchLength counts from here on */
#define CB_BATCH_CRC_FROM 21u   /* the CRC is of what is from here on */
#define CB_RECORD_LEAST 7u      /* bytes of a record with an empty value */

/* ------------------------------------------------------------------ building */

/* A batch that grows in memory of the caller. producer_id, producer_epoch and base_sequence are -1
 * unless the caller sets them before cb_batch_seal(). */
typedef struct cb_batch {
    uint8_t *at;                /* where it begins */
    size_t capacity;            /* most bytes that it may have, header included */
    size_t nbytes;              /* bytes so far */
    int64_t base_timestamp, max_timestamp;
    int64_t producer_id;
    int32_t base_sequence;
    int16_t producer_epoch;
    uint32_t records;
} cb_batch;

/* Begin an empty batch at `at`. */
void cb_batch_begin(cb_batch *b, void *at, size_t capacity);
/* Bytes that the next record would take with a value of nbytes. */
size_t cb_batch_needs(const cb_batch *b, int64_t timestamp, size_t nbytes);
/* Append a record; returns where its value of nbytes is to be written (by the caller, before the
 * seal), or NULL when the batch is full. A timestamp may be before that of the record before. */
uint8_t *cb_batch_place(cb_batch *b, int64_t timestamp, size_t nbytes);
/* Append a record with this value; 0, or -ENOSPC when the batch is full. */
int cb_batch_add(cb_batch *b, int64_t timestamp, const void *value, size_t nbytes);
/* Write the header, with baseOffset 0, and the CRC; returns the bytes of the whole batch, or 0 when
 * it has no record. The batch may not grow afterwards. */
size_t cb_batch_seal(cb_batch *b);

/* ------------------------------------------------------------------ checking */

typedef struct cb_batch_info {
    uint64_t nbytes;            /* of the whole batch, 0 while that is not known */
    int64_t base_offset;
    int64_t base_timestamp, max_timestamp;
    int64_t producer_id;
    int32_t base_sequence;
    int32_t leader_epoch;
    int16_t producer_epoch;
    uint32_t records;
    const char *problem;        /* after a failure: why, for people; else NULL */
} cb_batch_info;

/* Read the header of the batch that begins at `bytes`: whether it is one, and how long it says that
 * it is. -ENODATA: nbytes are fewer than a header. -EBADMSG: no batch of ours (magic, attributes,
 * a length too small for its records, a count that does not fit the offsets). Its length may exceed
 * nbytes, and its content is not looked at. */
int cb_batch_header(const void *bytes, size_t nbytes, cb_batch_info *info);
/* The header and the CRC. -ENODATA: the batch is not whole (info->nbytes says how many it needs).
 * What lies behind it in `bytes` is not looked at. */
int cb_batch_check(const void *bytes, size_t nbytes, cb_batch_info *info);

/* The CRC that a batch says that it has. */
uint32_t cb_batch_crc(const void *bytes);

/* Set what a broker sets, in place: the offset of the first record; the epoch becomes 0. */
void cb_batch_set_base_offset(void *bytes, int64_t offset);

/* ------------------------------------------------------------------ reading */

typedef struct cb_record {
    int64_t offset, timestamp;
    const uint8_t *value;       /* in the batch; NULL for a null value */
    uint64_t nbytes;
} cb_record;

typedef struct cb_records {     /* a place in a batch */
    const uint8_t *at, *end;
    cb_batch_info info;
    uint32_t next;              /* record number */
} cb_records;

/* Begin reading a batch; the CRC is not checked. Errors as cb_batch_header(), -ENODATA: not whole. */
int cb_records_begin(cb_records *r, const void *bytes, size_t nbytes);
/* The next record: 1; 0 after the last; -EBADMSG when a record does not fit the batch. Keys and
 * headers are passed over. */
int cb_records_next(cb_records *r, cb_record *record);

#ifdef __cplusplus
}
#endif
#endif
