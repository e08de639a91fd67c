/* The consumer of the kafka channel: librdkafka read by offset, with the age of every record. */
#ifndef COMMBENCH_KAFKA_CONSUMER_H
#define COMMBENCH_KAFKA_CONSUMER_H

#include "broker/broker.h"
#include "library.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cb_kafka_reader cb_kafka_reader;

/* One partition of the topic. `next` is the offset that has to come next; a pass ends at `until`, or
 * with until < 0 when `marks` records without a value have come, one of each producer. */
typedef struct cb_kafka_part {
    int32_t partition;
    int64_t next, until;
    uint32_t marks;
} cb_kafka_part;

/* A record begins with the time at which it was produced, 8 bytes in the host's order; 0: its age is
 * not wanted. */
typedef struct cb_kafka_pass {
    cb_kafka_part *parts;
    size_t nparts;
    uint64_t record_nbytes;
    int64_t timeout_ns;         /* longest wait for the next record: -ETIMEDOUT */
    const int32_t *stop;        /* non-zero (atomic): give up with -ECANCELED */
    cb_times *end_to_end;
    /* out */
    uint64_t records;           /* with a value */
    char message[512];          /* one line: why it ended */
} cb_kafka_pass;

/* Reads from `next` of each part on. `settings` as of cb_kafka_open. */
cb_kafka_reader *cb_kafka_reader_open(const cb_kafka_library *library, const char *const *settings,
                                      size_t nsettings, const char *topic,
                                      const cb_kafka_part *parts, size_t nparts, char *error,
                                      size_t size);
void cb_kafka_reader_close(cb_kafka_reader *r);

/* 0 when every part is at its end; -ETIMEDOUT, -ECANCELED, -EIO (the library or the cluster refuses),
 * -EBADMSG (an offset is missing, doubled or out of order, or a record has another length). */
int cb_kafka_read(cb_kafka_reader *r, cb_kafka_pass *pass);

#ifdef __cplusplus
}
#endif
#endif
