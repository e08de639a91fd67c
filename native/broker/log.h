/*
 * log.h: the append-only log of one partition, in segment files of whole record batches (batch.h).
 *
 * A folder holds `<offset of the first record, 20 digits>.log` as Kafka names them, and the lock file
 * `commbench.lock`, which also says that the folder is ours. One process has a log open at a time
 * (-EWOULDBLOCK), and one thread at a time calls it. Functions return 0 (or a count or an offset) or
 * -errno; cb_log_last_error() then has one line for people.
 *
 * What holds:
 *  - an append is one write of one whole batch at the end, and a write that comes up short is undone;
 *  - after an append that failed with -ENOSPC, -EDQUOT or -EFBIG the log is as before and goes on;
 *  - after a kill at any moment the log opens with every batch whose append had returned; what is
 *    behind the last whole batch is cut off, and cb_log_recovered() says how much;
 *  - after a loss of power the same holds for what was flushed (cb_log_flushed_offset()).
 * docs/broker-log.md has the format and the recovery.
 */
#ifndef COMMBENCH_LOG_H
#define COMMBENCH_LOG_H

#include "batch.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CB_LOG_ERROR 256u                       /* bytes of a line for people */
#define CB_LOG_SEGMENT_BYTES (UINT64_C(1) << 30)
#define CB_LOG_SEGMENT_LEAST UINT64_C(256)
#define CB_LOG_SEGMENT_MOST ((UINT64_C(1) << 31) - 1)
#define CB_LOG_BATCH_BYTES 1048588u             /* Kafka's message.max.bytes */

typedef struct cb_log cb_log;

typedef struct cb_log_options {
    const char *directory;      /* made (mode 0700) when it is not there; its parent must be */
    uint64_t segment_bytes;     /* a segment has at most so many; 0: CB_LOG_SEGMENT_BYTES */
    uint32_t max_batch_bytes;   /* 0: CB_LOG_BATCH_BYTES; never more than a segment */
    uint64_t flush_every;       /* fdatasync when so many records are not flushed: 0: never; 1: before
                                   each append returns */
} cb_log_options;

/* What opening found, and what it cut off. */
typedef struct cb_log_recovery {
    uint64_t segments, batches, records, nbytes;    /* what is there */
    uint64_t cut_nbytes;        /* cut off or removed */
    uint64_t lost_batches, lost_records;    /* whole ones among that: they lay behind a bad one */
    uint64_t removed_segments;
    char reason[CB_LOG_ERROR];  /* "" when nothing was cut; else why and where, for people */
} cb_log_recovery;

/* Since opening. What the recovery itself flushed is not in it. */
typedef struct cb_log_counters {
    uint64_t batches, records, nbytes;      /* appended */
    uint64_t crc_nbytes;        /* that a CRC was taken of by cb_log_append() and _append_replica() */
    uint64_t read_nbytes;       /* handed out by cb_log_read() */
    uint64_t fdatasyncs, directory_syncs;
    uint64_t rolls;             /* segments begun */
    uint64_t clock_went_back;   /* batches whose maxTimestamp is before an earlier batch's */
} cb_log_counters;

/* Open a log, or begin one, and recover it: see above. *log is NULL on failure and `error` has the
 * line. -EWOULDBLOCK: open elsewhere; -EEXIST: the folder has segments that are not ours;
 * -EINVAL: options; -EIO and others: a file could not be read, and nothing was cut. */
int cb_log_open(const cb_log_options *options, cb_log **log, char error[CB_LOG_ERROR]);
/* Flushes what the policy still owes (flush_every 0: nothing), and frees the log in any case. */
int cb_log_close(cb_log *log);

/* Leader: append one batch, of exactly nbytes, and flush if the policy says so. Sets baseOffset in
 * the caller's memory, so that it holds what is in the log, and returns it. -EBADMSG: no batch, a length
 * that is not nbytes, or a wrong CRC; -EMSGSIZE: larger than max_batch_bytes; -ENOSPC and other errors
 * of write: the log is as before. When a flush fails the log takes no more appends (-EIO): what is on
 * the disk is then not known before it is opened again. */
int64_t cb_log_append(cb_log *log, void *batch, size_t nbytes);
/* The same for a batch that cb_batch_check() has passed, on whatever thread. */
int64_t cb_log_append_checked(cb_log *log, void *batch, const cb_batch_info *info);
/* Follower: append batches, one after the other, as a leader's cb_log_read() gave them; their offsets
 * must go on from cb_log_next_offset(), else -ERANGE. All are checked before any is written, with one
 * write where they fit one segment. Returns the next offset. After an error of write the log may have
 * the first of them: ask cb_log_next_offset(). */
int64_t cb_log_append_replica(cb_log *log, const void *batches, size_t nbytes);

/* fdatasync what is not flushed yet, whatever the policy. */
int cb_log_flush(cb_log *log);

/* Copy whole batches into `buffer`: the one that holds `offset` first, up to capacity, none with a
 * record at or behind `limit`, none of the next segment. Returns the bytes and sets *next to the offset
 * behind the last (pass it to read on). 0: nothing there below the limit. -ERANGE: before the first
 * offset or behind the next; -EMSGSIZE: the first batch alone is larger than capacity. */
int64_t cb_log_read(cb_log *log, int64_t offset, int64_t limit, void *buffer, size_t capacity,
                    int64_t *next);

/* Follower: drop every batch with a record at or behind `offset` (a leader that comes back may have
 * fewer). Not below the high watermark: -EINVAL. Returns the next offset. */
int64_t cb_log_truncate(cb_log *log, int64_t offset);

int64_t cb_log_first_offset(const cb_log *log);
int64_t cb_log_next_offset(const cb_log *log);
/* Records before it have been flushed, by this process. */
int64_t cb_log_flushed_offset(const cb_log *log);
int64_t cb_log_latest_timestamp(const cb_log *log);     /* greatest maxTimestamp; -1: no record */

/* Records before it are on every replica. Not kept on disk: the first offset after opening, until the
 * broker sets it. -EINVAL: behind the next offset, or going back. */
int64_t cb_log_high_watermark(const cb_log *log);
int cb_log_set_high_watermark(cb_log *log, int64_t offset);

const cb_log_recovery *cb_log_recovered(const cb_log *log);
const cb_log_counters *cb_log_counted(const cb_log *log);
const char *cb_log_last_error(const cb_log *log);       /* never NULL */

#ifdef __cplusplus
}
#endif
#endif
