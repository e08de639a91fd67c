/* Records by offset through librdkafka; the age of each is taken when the library hands it out. */
#include "kafka/consumer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commbench_ops.h"

#define LOOK_MS 50              /* a wait is no longer before the stop flag is looked at */

struct cb_kafka_reader {
    const cb_kafka_library *library;
    void *rk;
};

static void *make_conf(const cb_kafka_library *library, const char *const *settings,
                       size_t nsettings, char *error, size_t size)
{
    void *conf = library->conf_new_();
    for (size_t i = 0; i < nsettings; i++)
        if (library->conf_set_(conf, settings[2 * i], settings[2 * i + 1], error, size) != 0) {
            library->conf_destroy_(conf);
            return NULL;
        }
    return conf;
}

static int assign(cb_kafka_reader *r, const char *topic, const cb_kafka_part *parts, size_t nparts)
{
    const cb_kafka_library *l = r->library;
    void *list = l->topic_partition_list_new_((int)nparts);
    for (size_t i = 0; i < nparts; i++) {
        l->topic_partition_list_add_(list, topic, parts[i].partition);
        l->topic_partition_list_set_offset_(list, topic, parts[i].partition, parts[i].next);
    }
    int err = l->assign_(r->rk, list);
    l->topic_partition_list_destroy_(list);
    return err;
}

cb_kafka_reader *cb_kafka_reader_open(const cb_kafka_library *library, const char *const *settings,
                                      size_t nsettings, const char *topic,
                                      const cb_kafka_part *parts, size_t nparts, char *error,
                                      size_t size)
{
    cb_kafka_reader *r = calloc(1, sizeof *r);
    snprintf(error, size, "out of memory");
    if (!r)
        return NULL;
    r->library = library;
    void *conf = make_conf(library, settings, nsettings, error, size);
    if (conf) {
        r->rk = library->new_(CB_KAFKA_CONSUMER, conf, error, size);
        if (!r->rk)
            library->conf_destroy_(conf);       /* new() takes it only when it succeeds */
    }
    if (!r->rk) {
        free(r);
        return NULL;
    }
    library->poll_set_consumer_(r->rk);
    int err = assign(r, topic, parts, nparts);
    if (!err)
        return r;
    snprintf(error, size, "%s", library->err2str_(err));
    cb_kafka_reader_close(r);
    return NULL;
}

void cb_kafka_reader_close(cb_kafka_reader *r)
{
    if (!r)
        return;
    r->library->consumer_close_(r->rk);
    r->library->destroy_(r->rk);
    free(r);
}

/* ------------------------------------------------------------------ a pass */

static int ended(cb_kafka_pass *pass, int code, const char *what, const char *why)
{
    snprintf(pass->message, sizeof pass->message, "%s%s%s", what, why[0] ? ": " : "", why);
    for (char *p = pass->message; *p; p++)
        if (*p == '\n' || *p == '\r')
            *p = ' ';
    return code;
}

static bool is_over(const cb_kafka_part *part)
{
    return part->until < 0 ? part->marks == 0 : part->next >= part->until;
}

static cb_kafka_part *part_of(cb_kafka_pass *pass, int32_t partition)
{
    for (size_t i = 0; i < pass->nparts; i++)
        if (pass->parts[i].partition == partition)
            return &pass->parts[i];
    return NULL;
}

static int wrong(cb_kafka_pass *pass, const cb_kafka_message *m, const cb_kafka_part *part)
{
    char line[160];
    snprintf(line, sizeof line, "partition %" PRId32 ": after offset %" PRId64 " came %" PRId64
             ": records were lost, doubled or reordered", m->partition, part->next - 1, m->offset);
    return ended(pass, -EBADMSG, line, "");
}

static int take_value(cb_kafka_pass *pass, const cb_kafka_message *m, int64_t now)
{
    int64_t start;
    char line[160];
    if (m->len != pass->record_nbytes || m->len < sizeof start) {
        snprintf(line, sizeof line, "partition %" PRId32 ": the record at offset %" PRId64
                 " has %zu bytes instead of %" PRIu64, m->partition, m->offset, m->len,
                 pass->record_nbytes);
        return ended(pass, -EBADMSG, line, "");
    }
    memcpy(&start, m->payload, sizeof start);
    if (start)
        cb_times_add(pass->end_to_end, now - start);
    pass->records++;
    return 0;
}

static int take(cb_kafka_reader *r, cb_kafka_pass *pass, const cb_kafka_message *m, int64_t now)
{
    if (m->err) {
        const char *why = m->payload ? (const char *)m->payload : r->library->err2str_(m->err);
        return ended(pass, -EIO, "reading failed", why);
    }
    cb_kafka_part *part = part_of(pass, m->partition);
    if (!part)
        return 0;
    if (m->offset != part->next)
        return wrong(pass, m, part);
    part->next++;
    if (m->payload)
        return take_value(pass, m, now);
    if (part->until < 0 && part->marks)
        part->marks--;
    return 0;
}

static size_t unfinished(const cb_kafka_pass *pass)
{
    size_t left = 0;
    for (size_t i = 0; i < pass->nparts; i++)
        left += !is_over(&pass->parts[i]);
    return left;
}

static int check(cb_kafka_pass *pass, int64_t quiet_since)
{
    char line[96];
    if (__atomic_load_n(pass->stop, __ATOMIC_RELAXED))
        return ended(pass, -ECANCELED, "the run was stopped", "");
    if (cb_now_ns() - quiet_since <= pass->timeout_ns)
        return 0;
    snprintf(line, sizeof line, "no record came within %g s", (double)pass->timeout_ns / 1e9);
    return ended(pass, -ETIMEDOUT, line, "");
}

int cb_kafka_read(cb_kafka_reader *r, cb_kafka_pass *pass)
{
    int rc = 0;
    pass->records = 0;
    pass->message[0] = '\0';
    int64_t quiet_since = cb_now_ns();
    while (rc == 0 && unfinished(pass)) {
        cb_kafka_message *m = r->library->consumer_poll_(r->rk, LOOK_MS);
        int64_t now = cb_now_ns();
        if (m) {
            rc = take(r, pass, m, now);
            r->library->message_destroy_(m);
            quiet_since = now;
            if (rc == 0 && !__atomic_load_n(pass->stop, __ATOMIC_RELAXED))
                continue;
        }
        if (rc == 0)
            rc = check(pass, quiet_since);
    }
    return rc;
}
