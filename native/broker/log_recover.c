/* Opening: which of the bytes in the segment files are the log. */
#include "log_state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crc32c.h"

#define WINDOW (1u << 20)

/* A file that is read from the front. Bounded memory, whatever length a batch claims to have. */
typedef struct scan {
    int fd;
    uint64_t nbytes;            /* of the file */
    uint8_t *window;            /* WINDOW bytes: */
    uint64_t start, filled;     /* which of the file they are */
} scan;

/* *bytes: the file from `at` on, at least `need` bytes (of at most WINDOW) unless it ends before;
 * returns how many there are, or -errno. */
static int64_t look(scan *f, uint64_t at, uint64_t need, const uint8_t **bytes)
{
    uint64_t there = f->nbytes - at;
    if (need > there)
        need = there;
    if (at < f->start || at + need > f->start + f->filled) {
        uint64_t want = there < WINDOW ? there : WINDOW;
        f->start = at;
        for (f->filled = 0; f->filled < want;) {
            ssize_t n = pread(f->fd, f->window + f->filled, want - f->filled,
                              (off_t)(at + f->filled));
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return n < 0 ? -errno : -EIO;
            f->filled += (uint64_t)n;
        }
    }
    *bytes = f->window + (at - f->start);
    return (int64_t)(f->start + f->filled - at);
}

static int crc_at(scan *f, uint64_t at, uint64_t nbytes, uint32_t *crc)
{
    const uint8_t *bytes;
    *crc = 0;
    for (uint64_t k = CB_BATCH_CRC_FROM; k < nbytes;) {
        int64_t got = look(f, at + k, 1, &bytes);
        if (got < 0)
            return (int)got;
        uint64_t part = (uint64_t)got < nbytes - k ? (uint64_t)got : nbytes - k;
        *crc = cb_crc32c(*crc, bytes, part);
        k += part;
    }
    return 0;
}

/* 1: a whole batch is at `at`. 0: there is none, see info->problem. -errno: it could not be read. */
static int batch_at(scan *f, uint64_t at, cb_batch_info *info)
{
    const uint8_t *bytes;
    uint32_t crc;
    int64_t got = look(f, at, CB_BATCH_HEADER, &bytes);
    if (got < 0)
        return (int)got;
    if (cb_batch_header(bytes, (size_t)got, info) < 0)
        return 0;
    uint32_t stored = cb_batch_crc(bytes);
    if (info->nbytes > f->nbytes - at) {
        info->problem = "not whole";
        return 0;
    }
    int rc = crc_at(f, at, info->nbytes, &crc);
    if (rc < 0)
        return rc;
    if (crc != stored)
        info->problem = "wrong CRC";
    return crc == stored;
}

/* The same for a batch of the log: it must go on where the one before ended. */
static int next_batch(scan *f, const segment *s, cb_batch_info *info)
{
    int rc = batch_at(f, s->nbytes, info);
    if (rc <= 0)
        return rc;
    if (info->base_offset != s->next || info->leader_epoch != 0) {
        info->problem = "its offset does not go on from the one before";
        return 0;
    }
    return 1;
}

/* ------------------------------------------------------------------ what is lost */

/* Counts the whole batches from `at` on. One that is broken but says how long it is is stepped over. */
static int count_lost(cb_log *log, scan *f, uint64_t at)
{
    cb_batch_info info;
    while (at < f->nbytes) {
        int rc = batch_at(f, at, &info);
        if (rc < 0)
            return rc;
        if (info.nbytes == 0)
            break;
        log->recovery.lost_batches += (uint64_t)rc;
        log->recovery.lost_records += rc ? info.records : 0;
        at += info.nbytes;
    }
    return 0;
}

static int open_scan(cb_log *log, segment *s, scan *f)
{
    struct stat status;
    f->start = f->filled = 0;
    f->fd = segment_file(log, s);
    if (f->fd < 0)
        return f->fd;
    if (fstat(f->fd, &status) < 0)
        return log_errno(log, s, "stat");
    f->nbytes = (uint64_t)status.st_size;
    if (f->nbytes > CB_LOG_SEGMENT_MOST)
        return (int)log_failed(log, -EFBIG, "%020" PRId64 ".log has %" PRIu64 " bytes, more than "
                               "a segment may have", s->base, f->nbytes);
    return 0;
}

__attribute__((format(printf, 2, 3)))
static void say(cb_log *log, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(log->recovery.reason, sizeof log->recovery.reason, format, arguments);
    va_end(arguments);
}

/* ------------------------------------------------------------------ segments */

/* Reads the last segment of the table. *whole: it is right to its end. */
static int read_segment(cb_log *log, scan *f, bool *whole)
{
    segment *s = last_segment(log);
    cb_batch_info info;
    int rc = open_scan(log, s, f);
    while (rc == 0 && s->nbytes < f->nbytes) {
        rc = next_batch(f, s, &info);
        if (rc <= 0)
            break;
        segment_extend(s, &info);
        log->recovery.batches++;
        log->recovery.records += info.records;
        log->recovery.nbytes += info.nbytes;
        if (info.max_timestamp > log->latest_timestamp)
            log->latest_timestamp = info.max_timestamp;
        rc = 0;
    }
    *whole = rc == 0 && s->nbytes == f->nbytes;
    if (rc == 0 && !*whole) {
        say(log, "%020" PRId64 ".log at byte %" PRIu32 ", offset %" PRId64 ": %s", s->base,
            s->nbytes, s->next, info.problem);
        log->recovery.cut_nbytes += f->nbytes - s->nbytes;
        if (info.nbytes > 0)
            rc = count_lost(log, f, s->nbytes + info.nbytes);
    }
    return rc;
}

/* Puts the segments behind a cut into the table, to be removed. */
static int lose_segments(cb_log *log, scan *f, const int64_t *bases, int64_t count)
{
    for (int64_t k = 0; k < count; k++) {
        int rc = segment_add(log, bases[k]);
        if (rc == 0)
            rc = open_scan(log, last_segment(log), f);
        if (rc == 0)
            rc = count_lost(log, f, 0);
        if (rc < 0)
            return rc;
        log->recovery.cut_nbytes += f->nbytes;
        log->recovery.removed_segments++;
    }
    return 0;
}

static int read_segments(cb_log *log, scan *f, const int64_t *bases, int64_t count)
{
    bool whole = true;
    int64_t k = 0;
    int rc = 0;
    for (; k < count && whole && rc == 0; k++) {
        if (k > 0 && bases[k] != last_segment(log)->next) {
            say(log, "%020" PRId64 ".log does not go on from offset %" PRId64, bases[k],
                last_segment(log)->next);
            break;
        }
        rc = segment_add(log, bases[k]);
        if (rc == 0)
            rc = read_segment(log, f, &whole);
    }
    if (rc < 0 || (whole && k == count))
        return rc;
    size_t kept = log->nsegments - 1;
    rc = lose_segments(log, f, bases + k, count - k);
    const segment *s = &log->segments[kept];
    return rc < 0 ? rc : segments_cut(log, kept, s->nbytes, s->next);
}

int log_recover(cb_log *log)
{
    int64_t *bases;
    int64_t count = segments_list(log, &bases);
    if (count <= 0) {
        free(bases);
        return count < 0 ? (int)count : segment_create(log);
    }
    scan f = {.window = malloc(WINDOW)};
    int rc = f.window ? read_segments(log, &f, bases, count) : -ENOMEM;
    if (rc < 0 && !log->error[0])
        log_failed(log, rc, "%020" PRId64 ".log: read: %s",
                   log->nsegments ? last_segment(log)->base : bases[0], strerror(-rc));
    free(f.window);
    free(bases);
    if (rc < 0)
        return rc;
    log->next = last_segment(log)->next;
    log->recovery.segments = log->nsegments;
    return 0;
}
