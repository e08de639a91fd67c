/*
 * Records through librdkafka, each with its stamps. The library has threads of its own; reports of
 * deliveries and errors reach us in poll(), on the thread of the loop.
 */
#define _GNU_SOURCE             /* ppoll */
#include "kafka/producer.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "commbench_ops.h"

#define REPORTS_EVERY 8         /* records between two looks at the delivery reports */
#define LOOK_NS INT64_C(50000000)  /* a wait is no longer before the stop flag is looked at */
#define SPIN_NS 100000          /* an open loop does not sleep closer than this to its next record */
#define GIVE_UP_NS INT64_C(2000000000)  /* how long the library may take to let go of records */
#define ROUND_SHIFT 40          /* an opaque is the round of its block, then the record's number */

struct cb_kafka {
    const cb_kafka_library *library;
    void *rk, *topic, *queue;
    int wake;                   /* an eventfd, written when the first report is there to be taken */
    cb_kafka_block *block;
    uint64_t round, next, done;
    uint64_t count;             /* of the block, or what of it was produced when its time was up */
    int64_t until;              /* when that is; 0: never */
    bool waiting;               /* record `next` met a full queue: its start is stamped */
    int fatal;
    char trouble[256];
};

/* ------------------------------------------------------------------ what the library reports */

static void keep_line(char *to, size_t size, const char *what)
{
    snprintf(to, size, "%s", what);
    for (char *p = to; *p; p++)
        if (*p == '\n' || *p == '\r')
            *p = ' ';
}

/* Nothing more is produced after the first: the block has failed. */
static void record_failed(cb_kafka *k, uint64_t i, int err)
{
    cb_kafka_block *b = k->block;
    const char *why = err == CB_KAFKA_MESSAGE_TIMED_OUT ? k->trouble : "";
    char line[sizeof b->message];
    b->end[i] = 0;
    if (b->failed++ == 0) {
        b->error = err;
        snprintf(line, sizeof line, "%s%s%s", k->library->err2str_(err), why[0] ? ": " : "", why);
        keep_line(b->message, sizeof b->message, line);
    }
    k->done++;
}

static void delivered(void *rk, const cb_kafka_message *message, void *opaque)
{
    cb_kafka *k = opaque;
    uint64_t tag = (uintptr_t)message->opaque, i = tag & ((UINT64_C(1) << ROUND_SHIFT) - 1);
    cb_kafka_block *b = k->block;
    (void)rk;
    if (!b || tag >> ROUND_SHIFT != k->round)   /* of a block that was given up */
        return;
    if (message->err) {
        record_failed(k, i, message->err);
        return;
    }
    b->end[i] = cb_now_ns();
    if (b->offset)
        b->offset[i] = message->offset;
    if (b->partition)
        b->partition[i] = message->partition;
    b->acked++;
    k->done++;
}

static void troubled(void *rk, int err, const char *reason, void *opaque)
{
    cb_kafka *k = opaque;
    (void)rk;
    if (err == CB_KAFKA_AUTHENTICATION || err == CB_KAFKA_FATAL)
        k->fatal = err;
    else if (err == CB_KAFKA_ALL_BROKERS_DOWN && k->trouble[0])
        return;                 /* the line before says why */
    keep_line(k->trouble, sizeof k->trouble, reason);
}

const char *cb_kafka_trouble(const cb_kafka *k)
{
    return k->trouble;
}

/* ------------------------------------------------------------------ open, close */

static void *make_conf(cb_kafka *k, const char *const *settings, size_t nsettings, char *error,
                       size_t size)
{
    void *conf = k->library->conf_new_();
    for (size_t i = 0; i < nsettings; i++)
        if (k->library->conf_set_(conf, settings[2 * i], settings[2 * i + 1], error, size) != 0) {
            k->library->conf_destroy_(conf);
            return NULL;
        }
    k->library->conf_set_opaque_(conf, k);
    k->library->conf_set_dr_msg_cb_(conf, delivered);
    k->library->conf_set_error_cb_(conf, troubled);
    return conf;
}

static bool connect_to(cb_kafka *k, void *conf, const char *topic, char *error, size_t size)
{
    k->rk = k->library->new_(CB_KAFKA_PRODUCER, conf, error, size);
    if (!k->rk) {
        k->library->conf_destroy_(conf);        /* new() takes it only when it succeeds */
        return false;
    }
    uint64_t one = 1;
    k->queue = k->library->queue_get_main_(k->rk);
    k->library->queue_io_event_enable_(k->queue, k->wake, &one, sizeof one);
    k->topic = k->library->topic_new_(k->rk, topic, NULL);
    if (!k->topic)
        snprintf(error, size, "topic %s: %s", topic,
                 k->library->err2str_(k->library->last_error_()));
    return k->topic;
}

cb_kafka *cb_kafka_open(const cb_kafka_library *library, const char *const *settings,
                        size_t nsettings, const char *topic, char *error, size_t size, int *rc)
{
    cb_kafka *k = calloc(1, sizeof *k);
    *rc = -ENOMEM;
    snprintf(error, size, "out of memory");
    if (!k)
        return NULL;
    k->library = library;
    k->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (k->wake < 0) {
        *rc = -errno;
        snprintf(error, size, "eventfd: %s", strerror(errno));
        free(k);
        return NULL;
    }
    *rc = -EINVAL;
    void *conf = make_conf(k, settings, nsettings, error, size);
    if (conf && connect_to(k, conf, topic, error, size))
        return k;
    cb_kafka_close(k);
    return NULL;
}

/* poll() of the library knows milliseconds only, and an open loop has to be on time. */
static void sleep_for(cb_kafka *k, int64_t ns)
{
    struct pollfd woken = {.fd = k->wake, .events = POLLIN};
    uint64_t drained;
    if (ppoll(&woken, 1, &(struct timespec){0, ns < LOOK_NS ? ns : LOOK_NS}, NULL) > 0)
        while (read(k->wake, &drained, sizeof drained) > 0)
            ;
}

/* Nothing of the block is referenced by the library afterwards. */
static void give_up(cb_kafka *k)
{
    int64_t until = cb_now_ns() + GIVE_UP_NS;
    k->round++;
    k->library->purge_(k->rk, CB_KAFKA_PURGE_QUEUE | CB_KAFKA_PURGE_INFLIGHT);
    while (k->library->outq_len_(k->rk) > 0 && cb_now_ns() < until)
        if (k->library->poll_(k->rk, 0) == 0)
            sleep_for(k, LOOK_NS);
}

void cb_kafka_close(cb_kafka *k)
{
    if (!k)
        return;
    if (k->rk && k->library->outq_len_(k->rk) > 0)
        give_up(k);
    if (k->topic)
        k->library->topic_destroy_(k->topic);
    if (k->queue) {
        k->library->queue_io_event_enable_(k->queue, -1, NULL, 0);
        k->library->queue_destroy_(k->queue);
    }
    if (k->rk)
        k->library->destroy_(k->rk);
    close(k->wake);
    free(k);
}

/* ------------------------------------------------------------------ the loop */

/* ns until record `next` is due; 0 or less: now. */
static int64_t due_in(const cb_kafka *k)
{
    return k->block->open ? k->block->intended[k->next] - cb_now_ns() : 0;
}

static bool may_produce(const cb_kafka *k)
{
    uint32_t window = k->block->window;
    return k->next < k->count && (window == 0 || k->next - k->done < window);
}

/* Hand record `next` over; false when the library's queue is full. */
static bool produce_one(cb_kafka *k)
{
    cb_kafka_block *b = k->block;
    uint64_t i = k->next;
    int32_t partition = b->partitions ? (int32_t)(i % (uint64_t)b->partitions)
                                      : CB_KAFKA_ANY_PARTITION;
    char *value = b->records ? b->records + i % b->nrecords * b->stride : NULL;
    void *tag = (void *)(uintptr_t)(k->round << ROUND_SHIFT | i);

    if (!k->waiting)
        b->start[i] = cb_now_ns();
    if (b->stamped && !k->waiting)
        memcpy(value, i < b->warmup ? &(int64_t){0} : &b->start[i], sizeof *b->start);
    int rc = k->library->produce_(k->topic, partition, b->stamped ? CB_KAFKA_COPY : 0, value, b->record_nbytes, NULL, 0, tag);
    int err = rc == 0 ? 0 : k->library->last_error_();
    if (err == CB_KAFKA_QUEUE_FULL) {
        b->full += !k->waiting;
        k->waiting = true;
        return false;
    }
    k->waiting = false;
    k->next++;
    if (err)
        record_failed(k, i, err);
    return true;
}

static void produce_some(cb_kafka *k)
{
    for (int n = 0; n < REPORTS_EVERY && may_produce(k) && due_in(k) <= 0; n++)
        if (k->block->failed || !produce_one(k))
            break;
    if (k->block->failed || (k->until && cb_now_ns() >= k->until)) {
        k->count = k->next;
        k->waiting = false;     /* it was not handed over */
    }
}

/* Sleeps until a report comes, but not past the time of the next record. */
static void take_reports(cb_kafka *k)
{
    int64_t wait_ns = LOOK_NS;
    if (k->library->poll_(k->rk, 0) > 0 || k->done == k->count)
        return;
    if (may_produce(k) && !k->waiting)
        wait_ns = due_in(k) - SPIN_NS;
    if (wait_ns > 0)
        sleep_for(k, wait_ns);
}

static int ended(cb_kafka *k, int code, const char *what)
{
    cb_kafka_block *b = k->block;
    const char *why = k->trouble[0] ? k->trouble : b->failed ? k->library->err2str_(b->error) : "";
    char line[sizeof b->message];
    snprintf(line, sizeof line, "%s%s%s", what, what[0] && why[0] ? ": " : "", why);
    keep_line(b->message, sizeof b->message, line);
    return code;
}

/* `quiet_since`: the last acknowledgement, or when there was nothing to be acknowledged. */
static int check(cb_kafka *k, int64_t quiet_since)
{
    cb_kafka_block *b = k->block;
    char line[96];
    if (__atomic_load_n(b->stop, __ATOMIC_RELAXED))
        return ended(k, -ECANCELED, "the run was stopped");
    if (k->fatal)
        return ended(k, k->fatal == CB_KAFKA_AUTHENTICATION ? -EACCES : -EIO, "");
    if (cb_now_ns() - quiet_since <= b->timeout_ns)
        return 0;
    snprintf(line, sizeof line, "no acknowledgement within %g s", (double)b->timeout_ns / 1e9);
    return ended(k, -ETIMEDOUT, line);
}

static void begin(cb_kafka *k, cb_kafka_block *b)
{
    k->block = b;
    k->next = k->done = 0;
    k->count = b->count;
    k->waiting = false;
    b->acked = b->failed = b->full = 0;
    b->error = 0;
    b->message[0] = '\0';
    memset(b->end, 0, b->count * sizeof *b->end);
    memset(b->start, 0, b->count * sizeof *b->start);
    int64_t origin = cb_now_ns();
    k->until = b->duration_ns ? origin + b->duration_ns : 0;
    for (uint64_t i = 0; b->open && i < b->count; i++)
        b->intended[i] += origin;
}

int cb_kafka_run(cb_kafka *k, cb_kafka_block *block)
{
    int rc = 0;
    begin(k, block);
    int64_t quiet_since = cb_now_ns();
    while (rc == 0 && k->done < k->count) {
        uint64_t before = block->acked;
        bool idle = k->next == k->done && !k->waiting;
        produce_some(k);
        take_reports(k);
        if (block->acked != before || idle)
            quiet_since = cb_now_ns();
        rc = check(k, quiet_since);
    }
    if (rc < 0)
        give_up(k);
    if (!block->open && block->intended)
        memcpy(block->intended, block->start, block->count * sizeof *block->start);
    block->produced = k->next;
    k->round++;
    k->block = NULL;
    return rc;
}
