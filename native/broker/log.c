/* The log: opening, appending, flushing, truncating. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log_state.h"

#define LOCK "commbench.lock"

int64_t log_failed(cb_log *log, int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(log->error, sizeof log->error, format, arguments);
    va_end(arguments);
    return code;
}

int log_errno(cb_log *log, const segment *s, const char *call)
{
    int code = errno;
    char name[SEGMENT_NAME] = "the folder";
    if (s)
        segment_name(name, s->base);
    return (int)log_failed(log, -code, "%s: %s: %s", name, call, strerror(code));
}

/* ------------------------------------------------------------------ opening */

/* The entry of a new folder must be on the disk before what is in it counts. */
static int sync_parent(cb_log *log)
{
    int parent = openat(log->directory, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = parent < 0 || fsync(parent) < 0 ? log_errno(log, NULL, "fsync of its parent") : 0;
    if (parent >= 0)
        close(parent);
    return rc;
}

static int open_directory(cb_log *log, const char *path)
{
    bool made = mkdir(path, 0700) == 0;
    if (!made && errno != EEXIST)
        return log_errno(log, NULL, "create");
    log->directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (log->directory < 0)
        return log_errno(log, NULL, "open");
    return made ? sync_parent(log) : 0;
}

/* Recovery cuts and removes files, so it must not meet the segments of a real Kafka. */
static int claim_directory(cb_log *log)
{
    int64_t *bases;
    int64_t count = segments_list(log, &bases);
    free(bases);
    if (count < 0)
        return (int)count;
    if (count > 0)
        return (int)log_failed(log, -EEXIST, "the folder has segments of a log that is not "
                               "commbench's: it lacks " LOCK);
    log->lock = openat(log->directory, LOCK, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return log->lock < 0 ? log_errno(log, NULL, "create " LOCK) : 0;
}

static int lock_directory(cb_log *log)
{
    int rc = 0;
    log->lock = openat(log->directory, LOCK, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (log->lock < 0)
        rc = errno == ENOENT ? claim_directory(log) : log_errno(log, NULL, "open " LOCK);
    if (rc == 0 && flock(log->lock, LOCK_EX | LOCK_NB) < 0)
        rc = errno == EWOULDBLOCK ? (int)log_failed(log, -EWOULDBLOCK, "another has the log open")
                                  : log_errno(log, NULL, "lock");
    return rc;
}

static int take_options(cb_log *log, const cb_log_options *o)
{
    log->segment_bytes = o->segment_bytes ? o->segment_bytes : CB_LOG_SEGMENT_BYTES;
    log->max_batch_bytes = o->max_batch_bytes ? o->max_batch_bytes : CB_LOG_BATCH_BYTES;
    log->flush_every = o->flush_every;
    if (log->segment_bytes < CB_LOG_SEGMENT_LEAST || log->segment_bytes > CB_LOG_SEGMENT_MOST)
        return (int)log_failed(log, -EINVAL, "segment bytes: %" PRIu64 "; allowed: %" PRIu64
                               " to %" PRIu64, log->segment_bytes, CB_LOG_SEGMENT_LEAST,
                               CB_LOG_SEGMENT_MOST);
    if (log->max_batch_bytes > log->segment_bytes)
        log->max_batch_bytes = (uint32_t)log->segment_bytes;
    return 0;
}

/* What a process that was killed had written is perhaps not on the disk yet. */
static int settle(cb_log *log)
{
    log->flushed = log->high_watermark = cb_log_first_offset(log);
    log->first_dirty = 0;
    int rc = log->flush_every ? cb_log_flush(log) : 0;
    log->counters = (cb_log_counters){0};
    return rc;
}

static void free_log(cb_log *log)
{
    for (size_t k = 0; k < log->nsegments; k++) {
        segment_close(&log->segments[k]);
        free(log->segments[k].index);
    }
    free(log->segments);
    if (log->lock >= 0)
        close(log->lock);
    if (log->directory >= 0)
        close(log->directory);
    free(log);
}

int cb_log_open(const cb_log_options *options, cb_log **result, char error[CB_LOG_ERROR])
{
    *result = NULL;
    cb_log *log = calloc(1, sizeof *log);
    if (!log) {
        snprintf(error, CB_LOG_ERROR, "%s", strerror(ENOMEM));
        return -ENOMEM;
    }
    log->directory = log->lock = -1;
    log->latest_timestamp = -1;
    log->reading = SIZE_MAX;
    for (unsigned k = 0; k < ENDS; k++)
        log->ends[k].segment = SIZE_MAX;
    int rc = take_options(log, options);
    if (rc == 0)
        rc = open_directory(log, options->directory);
    if (rc == 0)
        rc = lock_directory(log);
    if (rc == 0)
        rc = log_recover(log);
    if (rc == 0)
        rc = settle(log);
    if (rc < 0) {
        snprintf(error, CB_LOG_ERROR, "%s", log->error);
        free_log(log);
        return rc;
    }
    *result = log;
    return 0;
}

int cb_log_close(cb_log *log)
{
    int rc = log->flush_every && !log->broken ? cb_log_flush(log) : 0;
    free_log(log);
    return rc;
}

/* ------------------------------------------------------------------ flushing */

static int flush_segment(cb_log *log, segment *s)
{
    int fd = segment_file(log, s);
    if (fd < 0)
        return fd;
    log->counters.fdatasyncs++;
    return fdatasync(fd) < 0 ? log_errno(log, s, "fdatasync") : 0;
}

int cb_log_flush(cb_log *log)
{
    for (; log->first_dirty < log->nsegments; log->first_dirty++) {
        int rc = flush_segment(log, &log->segments[log->first_dirty]);
        if (rc < 0) {
            log->broken = true;         /* the kernel may have dropped the pages */
            return rc;
        }
    }
    log->flushed = log->next;
    return 0;
}

static int flush_if_due(cb_log *log)
{
    bool due = log->flush_every && (uint64_t)(log->next - log->flushed) >= log->flush_every;
    return due ? cb_log_flush(log) : 0;
}

/* ------------------------------------------------------------------ appending */

static int refuse_if_broken(cb_log *log)
{
    if (!log->broken)
        return 0;
    return (int)log_failed(log, -EIO, "the log takes no more: a write or flush failed, and what is "
                           "on the disk is known only when it is opened again");
}

/* One write at the end; undone when it comes up short. */
static int write_tail(cb_log *log, const void *bytes, size_t nbytes)
{
    segment *s = last_segment(log);
    int fd = segment_file(log, s);
    if (fd < 0)
        return fd;
    for (size_t done = 0; done < nbytes;) {
        ssize_t n = pwrite(fd, (const char *)bytes + done, nbytes - done,
                           (off_t)(s->nbytes + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n > 0) {
            done += (size_t)n;
            continue;
        }
        errno = n < 0 ? errno : EIO;
        int rc = log_errno(log, s, "write");
        if (done > 0 && ftruncate(fd, (off_t)s->nbytes) < 0)
            log->broken = true;
        return rc;
    }
    if (log->first_dirty >= log->nsegments)
        log->first_dirty = log->nsegments - 1;
    return 0;
}

/* A batch lies behind the last one now. */
static void take_in(cb_log *log, const cb_batch_info *info)
{
    segment_extend(last_segment(log), info);
    log->next += info->records;
    log->counters.batches++;
    log->counters.records += info->records;
    log->counters.nbytes += info->nbytes;
    if (info->max_timestamp < log->latest_timestamp)
        log->counters.clock_went_back++;
    else
        log->latest_timestamp = info->max_timestamp;
}

/* Begin a segment when the last has no room. One that is empty always has. */
static int make_room(cb_log *log, uint64_t nbytes)
{
    if (last_segment(log)->nbytes == 0 || last_segment(log)->nbytes + nbytes <= log->segment_bytes)
        return 0;
    int rc = segment_create(log);
    log->counters.rolls += rc == 0;
    return rc;
}

static int check_size(cb_log *log, uint64_t nbytes)
{
    if (nbytes <= log->max_batch_bytes)
        return 0;
    return (int)log_failed(log, -EMSGSIZE, "a batch of %" PRIu64 " bytes; allowed: %" PRIu32,
                           nbytes, log->max_batch_bytes);
}

int64_t cb_log_append_checked(cb_log *log, void *batch, const cb_batch_info *info)
{
    int rc = refuse_if_broken(log);
    if (rc == 0)
        rc = check_size(log, info->nbytes);
    if (rc == 0)
        rc = make_room(log, info->nbytes);
    if (rc < 0)
        return rc;
    int64_t base = log->next;
    cb_batch_set_base_offset(batch, base);
    rc = write_tail(log, batch, info->nbytes);
    if (rc < 0)
        return rc;
    take_in(log, info);
    rc = flush_if_due(log);
    return rc < 0 ? rc : base;
}

int64_t cb_log_append(cb_log *log, void *batch, size_t nbytes)
{
    cb_batch_info info;
    int rc = check_size(log, nbytes);
    if (rc < 0)
        return rc;
    if (cb_batch_check(batch, nbytes, &info) < 0)
        return log_failed(log, -EBADMSG, "a batch of %zu bytes: %s", nbytes, info.problem);
    log->counters.crc_nbytes += nbytes - CB_BATCH_CRC_FROM;
    if (info.nbytes != nbytes)
        return log_failed(log, -EBADMSG, "a batch of %zu bytes says that it has %" PRIu64, nbytes,
                          info.nbytes);
    return cb_log_append_checked(log, batch, &info);
}

/* ------------------------------------------------------------------ a follower's appends */

/* Are these whole batches that go on from the log? */
static int check_replica(cb_log *log, const uint8_t *bytes, size_t nbytes)
{
    cb_batch_info info;
    int64_t next = log->next;
    for (size_t at = 0; at < nbytes; at += info.nbytes) {
        if (cb_batch_check(bytes + at, nbytes - at, &info) < 0)
            return (int)log_failed(log, -EBADMSG, "a batch at byte %zu of %zu: %s", at, nbytes,
                                   info.problem);
        if (info.base_offset != next || info.leader_epoch != 0)
            return (int)log_failed(log, -ERANGE, "a batch with offset %" PRId64 "; the log goes on "
                                   "with %" PRId64, info.base_offset, next);
        int rc = check_size(log, info.nbytes);
        if (rc < 0)
            return rc;
        next += info.records;
        log->counters.crc_nbytes += info.nbytes - CB_BATCH_CRC_FROM;
    }
    return 0;
}

/* Bytes of the batches from the front that fit the last segment: at least one, there is room for it. */
static size_t fitting(const cb_log *log, const uint8_t *bytes, size_t nbytes)
{
    cb_batch_info info;
    uint64_t left = log->segment_bytes - last_segment(log)->nbytes;
    size_t at = 0;
    while (at < nbytes) {
        cb_batch_header(bytes + at, nbytes - at, &info);
        if (at > 0 && at + info.nbytes > left)
            break;
        at += info.nbytes;
    }
    return at;
}

static void take_in_all(cb_log *log, const uint8_t *bytes, size_t nbytes)
{
    cb_batch_info info;
    for (size_t at = 0; at < nbytes; at += info.nbytes) {
        cb_batch_header(bytes + at, nbytes - at, &info);
        take_in(log, &info);
    }
}

int64_t cb_log_append_replica(cb_log *log, const void *batches, size_t nbytes)
{
    const uint8_t *bytes = batches;
    cb_batch_info info;
    int rc = refuse_if_broken(log);
    if (rc == 0)
        rc = check_replica(log, bytes, nbytes);
    for (size_t at = 0, part; rc == 0 && at < nbytes; at += part) {
        cb_batch_header(bytes + at, nbytes - at, &info);
        rc = make_room(log, info.nbytes);
        part = rc == 0 ? fitting(log, bytes + at, nbytes - at) : 0;
        if (rc == 0)
            rc = write_tail(log, bytes + at, part);
        if (rc == 0)
            take_in_all(log, bytes + at, part);
    }
    if (rc == 0)
        rc = flush_if_due(log);
    return rc < 0 ? rc : log->next;
}

/* ------------------------------------------------------------------ truncating */

int64_t cb_log_truncate(cb_log *log, int64_t offset)
{
    int rc = refuse_if_broken(log);
    if (rc < 0 || offset >= log->next)
        return rc < 0 ? rc : log->next;
    if (offset < log->high_watermark || offset < cb_log_first_offset(log))
        return log_failed(log, -EINVAL, "truncate at %" PRId64 ": records before %" PRId64
                          " are on every replica", offset, log->high_watermark);
    place at;
    rc = segment_locate(log, segment_of(log, offset), offset, &at);
    if (rc == 0)
        rc = segments_cut(log, at.segment, at.position, at.offset);
    if (rc < 0)
        return rc;
    log->next = at.offset;
    if (log->flushed > log->next)
        log->flushed = log->next;
    return log->next;
}

/* ------------------------------------------------------------------ what it says of itself */

int64_t cb_log_first_offset(const cb_log *log) { return log->segments[0].base; }
int64_t cb_log_next_offset(const cb_log *log) { return log->next; }
int64_t cb_log_flushed_offset(const cb_log *log) { return log->flushed; }
int64_t cb_log_latest_timestamp(const cb_log *log) { return log->latest_timestamp; }
int64_t cb_log_high_watermark(const cb_log *log) { return log->high_watermark; }
const cb_log_recovery *cb_log_recovered(const cb_log *log) { return &log->recovery; }
const cb_log_counters *cb_log_counted(const cb_log *log) { return &log->counters; }
const char *cb_log_last_error(const cb_log *log) { return log->error; }

int cb_log_set_high_watermark(cb_log *log, int64_t offset)
{
    if (offset < log->high_watermark || offset > log->next)
        return (int)log_failed(log, -EINVAL, "high watermark %" PRId64 "; allowed: %" PRId64 " to %"
                               PRId64, offset, log->high_watermark, log->next);
    log->high_watermark = offset;
    return 0;
}
