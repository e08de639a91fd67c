/* The producer of the kafka channel: librdkafka driven by a loop that stamps every record. */
#ifndef COMMBENCH_KAFKA_PRODUCER_H
#define COMMBENCH_KAFKA_PRODUCER_H

#include "library.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cb_kafka cb_kafka;

/* One block of records. A record's value is one of `nrecords` that were made before, so nothing is
 * filled inside the stamps; they stay as they are until the producer is closed. For consumers
 * (`stamped`) a value's first 8 bytes are its start, 0 for those that are warm-up, and the library
 * takes a copy. Without `records` they have no value: the marks at which consumers end.
 *
 * start: the call of produce; while the library's queue is full that call is repeated, and the
 * waiting counts. end: the delivery report, 0 for a record that was not acknowledged. */
typedef struct cb_kafka_block {
    uint64_t count;
    char *records;
    int32_t stamped;
    uint64_t warmup;            /* stamped: the first so many */
    uint64_t nrecords, record_nbytes, stride;   /* record i is at (i % nrecords) * stride */
    uint32_t window;            /* most records in flight; 0: as many as the library's queue takes */
    int32_t partitions;         /* record i goes to i % partitions; 0: the library chooses */
    int32_t open;               /* 1: record i not before intended[i], relative to the start */
    int64_t duration_ns;        /* nothing is produced later than this after the start; 0: no limit */
    int64_t timeout_ns;         /* longest wait for an acknowledgement: -ETIMEDOUT */
    const int32_t *stop;        /* non-zero (atomic): give up with -ECANCELED */
    int64_t *intended;          /* absolute when the block is over; closed loop: the same as start */
    int64_t *start, *end;
    int64_t *offset;            /* where the record was put; both may be NULL */
    int32_t *partition;
    /* out */
    uint64_t produced;          /* the first so many of `count`; after a record failed no more are */
    uint64_t acked, failed;     /* records with a good and with a bad delivery report */
    uint64_t full;              /* records that met a full queue */
    int32_t error;              /* librdkafka's code of the first failed record, or 0 */
    char message[512];          /* one line: why it ended, else why the first record failed */
} cb_kafka_block;

/* A producer of one topic. `settings` has nsettings pairs of librdkafka's property and value, the last
 * one of a name counts. NULL: error has one line, and *rc is -EINVAL for a property that is wrong. */
cb_kafka *cb_kafka_open(const cb_kafka_library *library, const char *const *settings,
                        size_t nsettings, const char *topic, char *error, size_t size, int *rc);
void cb_kafka_close(cb_kafka *k);

/* 0, also when records failed; -ETIMEDOUT, -ECANCELED, -EACCES (credentials refused), -EIO (the
 * library cannot go on). Then what was in flight is given up and nothing writes into the block. */
int cb_kafka_run(cb_kafka *k, cb_kafka_block *block);

/* What the library said last of the connection to its brokers; "" when nothing was wrong. */
const char *cb_kafka_trouble(const cb_kafka *k);

#ifdef __cplusplus
}
#endif
#endif
