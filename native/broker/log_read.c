/* Reading by offset: whole batches, into memory of the caller. */
#include "log_state.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

/* Where to begin: mostly where a read before ended, else by the index. */
static int find_place(cb_log *log, int64_t offset, place *at)
{
    for (unsigned k = 0; k < ENDS; k++) {
        *at = log->ends[k];
        if (at->segment == SIZE_MAX || at->offset != offset)
            continue;
        if (at->position == log->segments[at->segment].nbytes)  /* a segment was begun since */
            *at = (place){offset, at->segment + 1, 0};
        return 0;
    }
    return segment_locate(log, segment_of(log, offset), offset, at);
}

static void remember_end(cb_log *log, const place *from, int64_t next, uint32_t nbytes)
{
    place end = {next, from->segment, from->position + nbytes};
    for (unsigned k = 0; k < ENDS; k++)         /* the same reader, further on */
        if (log->ends[k].segment == from->segment && log->ends[k].position == from->position) {
            log->ends[k] = end;
            return;
        }
    log->ends[log->turn++ % ENDS] = end;
}

/* The part of `got` bytes that are whole batches below `limit`; *next is the offset behind them. */
static int64_t whole_batches(const uint8_t *bytes, size_t got, int64_t limit, int64_t *next,
                             cb_batch_info *info)
{
    size_t at = 0;
    while (cb_batch_header(bytes + at, got - at, info) == 0 && info->nbytes <= got - at &&
           info->base_offset + info->records <= limit) {
        at += info->nbytes;
        *next = info->base_offset + info->records;
    }
    return (int64_t)at;
}

/* Why not even the first batch could be handed out. */
static int64_t nothing_whole(cb_log *log, const segment *s, const place *at, size_t capacity,
                             int64_t limit, const cb_batch_info *info)
{
    if (capacity < CB_BATCH_HEADER || info->nbytes > capacity)
        return log_failed(log, -EMSGSIZE, "a batch of %" PRIu64 " bytes or more does not fit %zu",
                          info->nbytes ? info->nbytes : CB_BATCH_HEADER, capacity);
    if (!info->problem && info->base_offset + info->records > limit)
        return 0;
    return log_failed(log, -EBADMSG, "%020" PRId64 ".log at byte %" PRIu32 ": %s", s->base,
                      at->position, info->problem ? info->problem : "not whole");
}

static int64_t read_at(cb_log *log, const place *at, int64_t limit, void *buffer, size_t capacity,
                       int64_t *next)
{
    segment *s = &log->segments[at->segment];
    cb_batch_info info;
    size_t want = s->nbytes - at->position;
    ssize_t got;
    int fd = segment_file(log, s);
    if (fd < 0)
        return fd;
    do
        got = pread(fd, buffer, want < capacity ? want : capacity, (off_t)at->position);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return log_errno(log, s, "read");
    int64_t nbytes = whole_batches(buffer, (size_t)got, limit, next, &info);
    if (nbytes == 0)
        return nothing_whole(log, s, at, capacity, limit, &info);
    remember_end(log, at, *next, (uint32_t)nbytes);
    log->counters.read_nbytes += (uint64_t)nbytes;
    return nbytes;
}

int64_t cb_log_read(cb_log *log, int64_t offset, int64_t limit, void *buffer, size_t capacity,
                    int64_t *next)
{
    place at;
    *next = offset;
    if (offset < cb_log_first_offset(log) || offset > log->next)
        return log_failed(log, -ERANGE, "offset %" PRId64 "; there are %" PRId64 " to %" PRId64,
                          offset, cb_log_first_offset(log), log->next);
    if (limit > log->next)
        limit = log->next;
    if (offset >= limit)
        return 0;
    int rc = find_place(log, offset, &at);
    return rc < 0 ? rc : read_at(log, &at, limit, buffer, capacity, next);
}
