/* What the files of the log share; nothing outside of log*.c includes it. */
#ifndef COMMBENCH_LOG_STATE_H
#define COMMBENCH_LOG_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "log.h"

#define INDEX_EVERY 4096u       /* bytes between entries of an index, as Kafka's */
#define ENDS 8u

typedef struct index_entry {    /* of a batch: relative to its segment */
    uint32_t offset, position;
} index_entry;

typedef struct segment {
    int64_t base;               /* offset of its first record, and its name */
    int64_t next;               /* offset behind its last record */
    uint32_t nbytes;
    int fd;                     /* -1: not open. Open are the last segment and one other. */
    index_entry *index;         /* of its batches, about each INDEX_EVERY bytes; may lack some */
    uint32_t nindex, index_capacity;
} segment;

typedef struct place {          /* where a batch is; segment SIZE_MAX: none */
    int64_t offset;
    size_t segment;
    uint32_t position;
} place;

struct cb_log {
    int directory, lock;        /* file descriptors, -1: not open */
    uint64_t segment_bytes, flush_every;
    uint32_t max_batch_bytes;
    segment *segments;          /* at least one, in order of their offsets */
    size_t nsegments, capacity;
    size_t reading;             /* the other segment that may be open */
    size_t first_dirty;         /* segments from here on may have data that was not flushed */
    int64_t next, flushed, high_watermark, latest_timestamp;
    bool broken;                /* what is on the disk is not known: no more appends */
    place ends[ENDS];           /* where recent reads ended: who reads on begins there */
    unsigned turn;              /* the next of `ends` to be overwritten */
    cb_log_counters counters;
    cb_log_recovery recovery;
    char error[CB_LOG_ERROR];
};

/* Keeps the line for cb_log_last_error() and returns `code`. */
__attribute__((format(printf, 3, 4)))
int64_t log_failed(cb_log *log, int code, const char *format, ...);
/* The same for a call of the system that has just set errno; `s` NULL: the folder. */
int log_errno(cb_log *log, const segment *s, const char *call);

/* ------------------------------------------------------------------ log_segment.c */

#define SEGMENT_NAME 32u
void segment_name(char name[SEGMENT_NAME], int64_t base);
static inline segment *last_segment(const cb_log *log)
{
    return &log->segments[log->nsegments - 1];
}

/* Its file, opened if it is not; or -errno. */
int segment_file(cb_log *log, segment *s);
void segment_close(segment *s);
/* One more in the table, with no file yet: 0 or -ENOMEM. */
int segment_add(cb_log *log, int64_t base);
/* Begin a new one at log->next, on the disk, too. */
int segment_create(cb_log *log);
/* A batch was written, or found, behind the last of `s`. */
void segment_extend(segment *s, const cb_batch_info *info);
/* Where the batch is that holds `offset`, which must be in `s`. */
int segment_locate(cb_log *log, segment *s, int64_t offset, place *at);
/* The segment that holds `offset`, or in which the log goes on with it. */
segment *segment_of(const cb_log *log, int64_t offset);
/* Cut the log: segment `index` goes on at `position` with offset `next`, and those behind it are
 * removed. On the disk when it returns 0; when it fails the log takes no more appends. */
int segments_cut(cb_log *log, size_t index, uint32_t position, int64_t next);
/* The bases of all segment files in the folder, ascending; the caller frees them. Count or -errno. */
int64_t segments_list(cb_log *log, int64_t **bases);

/* ------------------------------------------------------------------ log_recover.c */

/* Fill log->segments and log->recovery from the files, cutting off what is not whole. */
int log_recover(cb_log *log);

#endif
