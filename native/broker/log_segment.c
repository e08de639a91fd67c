/* Segments: their files, their sparse index, cutting. */
#include "log_state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIGITS 20
#define READABLE (O_RDWR | O_CLOEXEC | O_NOFOLLOW)

void segment_name(char name[SEGMENT_NAME], int64_t base)
{
    snprintf(name, SEGMENT_NAME, "%0*" PRId64 ".log", DIGITS, base);
}

/* The base that a file is named by, or -1. No log comes near the greatest offsets, whose sums overflow. */
static int64_t base_of(const char *name)
{
    char made[SEGMENT_NAME];
    if (strspn(name, "0123456789") != DIGITS)
        return -1;
    errno = 0;
    int64_t base = strtoll(name, NULL, 10);
    if (errno || base > INT64_MAX / 2)
        return -1;
    segment_name(made, base);
    return strcmp(made, name) ? -1 : base;
}

/* ------------------------------------------------------------------ files */

void segment_close(segment *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

int segment_file(cb_log *log, segment *s)
{
    char name[SEGMENT_NAME];
    if (s->fd >= 0)
        return s->fd;
    if (s != last_segment(log)) {
        if (log->reading < log->nsegments - 1)
            segment_close(&log->segments[log->reading]);
        log->reading = (size_t)(s - log->segments);
    }
    segment_name(name, s->base);
    s->fd = openat(log->directory, name, READABLE);
    return s->fd < 0 ? log_errno(log, s, "open") : s->fd;
}

int segment_add(cb_log *log, int64_t base)
{
    if (log->nsegments == log->capacity) {
        size_t capacity = log->capacity ? 2 * log->capacity : 4;
        segment *grown = realloc(log->segments, capacity * sizeof *grown);
        if (!grown)
            return (int)log_failed(log, -ENOMEM, "no memory for %zu segments", capacity);
        log->segments = grown;
        log->capacity = capacity;
    }
    if (log->nsegments > 0)
        segment_close(last_segment(log));
    log->segments[log->nsegments++] = (segment){.base = base, .next = base, .fd = -1};
    return 0;
}

static int sync_directory(cb_log *log)
{
    if (fsync(log->directory) < 0)
        return log_errno(log, NULL, "fsync");
    log->counters.directory_syncs++;
    return 0;
}

/* The entry in the table comes last: until then the log is as before. */
int segment_create(cb_log *log)
{
    char name[SEGMENT_NAME];
    segment_name(name, log->next);
    int fd = openat(log->directory, name, READABLE | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return (int)log_failed(log, -errno, "%s: create: %s", name, strerror(errno));
    int rc = sync_directory(log);
    if (rc == 0)
        rc = segment_add(log, log->next);
    if (rc < 0) {
        close(fd);
        unlinkat(log->directory, name, 0);
        return rc;
    }
    last_segment(log)->fd = fd;
    return 0;
}

static int64_t add_base(int64_t **bases, int64_t count, int64_t base)
{
    if ((count & (count - 1)) == 0) {           /* full at each power of two */
        int64_t *grown = realloc(*bases, (size_t)(count ? 2 * count : 1) * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        *bases = grown;
    }
    (*bases)[count] = base;
    return count + 1;
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int64_t segments_list(cb_log *log, int64_t **bases)
{
    int fd = openat(log->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    int64_t count = 0;
    *bases = NULL;
    if (!folder) {
        if (fd >= 0)
            close(fd);
        return log_errno(log, NULL, "read");
    }
    errno = 0;
    for (struct dirent *each; count >= 0 && (each = readdir(folder));)
        if (base_of(each->d_name) >= 0)
            count = add_base(bases, count, base_of(each->d_name));
    int code = count < 0 ? (int)-count : errno;
    closedir(folder);
    if (code) {
        free(*bases);
        *bases = NULL;
        return log_failed(log, -code, "the folder: read: %s", strerror(code));
    }
    if (count > 0)
        qsort(*bases, (size_t)count, sizeof **bases, ascending);
    return count;
}

/* ------------------------------------------------------------------ index */

/* An entry that there is no memory for is left out: the index finds the batch before it. */
static void index_add(segment *s, index_entry entry)
{
    if (s->nindex > 0 && entry.position - s->index[s->nindex - 1].position < INDEX_EVERY)
        return;
    if (s->nindex == s->index_capacity) {
        uint32_t capacity = s->index_capacity ? 2 * s->index_capacity : 64;
        index_entry *grown = realloc(s->index, capacity * sizeof *grown);
        if (!grown)
            return;
        s->index = grown;
        s->index_capacity = capacity;
    }
    s->index[s->nindex++] = entry;
}

void segment_extend(segment *s, const cb_batch_info *info)
{
    index_add(s, (index_entry){(uint32_t)(s->next - s->base), s->nbytes});
    s->nbytes += (uint32_t)info->nbytes;
    s->next += info->records;
}

/* The last entry at or before `offset`; the first batch when there is none. */
static uint32_t index_find(const segment *s, int64_t offset)
{
    uint32_t low = 0, high = s->nindex;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (s->base + s->index[middle].offset <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? s->index[low - 1].position : 0;
}

int segment_locate(cb_log *log, segment *s, int64_t offset, place *at)
{
    uint8_t header[CB_BATCH_HEADER];
    cb_batch_info info;
    int fd = segment_file(log, s);
    if (fd < 0)
        return fd;
    for (uint64_t position = index_find(s, offset); position < s->nbytes; position += info.nbytes) {
        ssize_t got = pread(fd, header, sizeof header, (off_t)position);
        if (got < 0)
            return log_errno(log, s, "read");
        if (cb_batch_header(header, (size_t)got, &info) < 0 || info.base_offset > offset)
            break;
        if (offset - info.base_offset < info.records) {
            *at = (place){info.base_offset, (size_t)(s - log->segments), (uint32_t)position};
            return 0;
        }
    }
    return (int)log_failed(log, -EBADMSG, "%020" PRId64 ".log: no whole batch with offset %" PRId64,
                      s->base, offset);
}

segment *segment_of(const cb_log *log, int64_t offset)
{
    size_t low = 0, high = log->nsegments;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (log->segments[middle].base <= offset)
            low = middle;
        else
            high = middle;
    }
    return &log->segments[low];
}

/* ------------------------------------------------------------------ cutting */

/* The last segments first: when this is cut short, what is left has no gap. */
static int remove_behind(cb_log *log, size_t index)
{
    char name[SEGMENT_NAME];
    while (log->nsegments > index + 1) {
        segment *s = last_segment(log);
        segment_name(name, s->base);
        if (unlinkat(log->directory, name, 0) < 0 && errno != ENOENT)
            return log_errno(log, s, "remove");
        segment_close(s);
        free(s->index);
        log->nsegments--;
    }
    return sync_directory(log);
}

static int cut_file(cb_log *log, segment *s, uint32_t position)
{
    int fd = segment_file(log, s);
    if (fd < 0)
        return fd;
    return ftruncate(fd, (off_t)position) < 0 || fsync(fd) < 0 ? log_errno(log, s, "cut") : 0;
}

int segments_cut(cb_log *log, size_t index, uint32_t position, int64_t next)
{
    for (unsigned k = 0; k < ENDS; k++)
        log->ends[k].segment = SIZE_MAX;
    int rc = index + 1 < log->nsegments ? remove_behind(log, index) : 0;
    segment *s = &log->segments[index];
    if (rc == 0)
        rc = cut_file(log, s, position);
    if (rc < 0) {
        log->broken = true;
        return rc;
    }
    s->nbytes = position;
    s->next = next;
    while (s->nindex > 0 && s->index[s->nindex - 1].position >= position)
        s->nindex--;
    return 0;
}
