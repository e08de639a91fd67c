/*
 * The producer's loop as librdkafka's own rdkafka_performance has it: produce, poll once for each
 * record, count delivery reports; when the queue is full, poll and try again. No stamps but the two
 * of the whole. Functions come from the library that is loaded already.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define QUEUE_FULL (-184)
#define WAIT_MS 10

typedef struct message {
    int err;
    void *topic;
    int32_t partition;
    void *payload;
    size_t len;
    void *key;
    size_t key_len;
    int64_t offset;
    void *opaque;
} message;

static struct {
    void *(*conf_new)(void);
    int (*conf_set)(void *, const char *, const char *, char *, size_t);
    void (*conf_set_dr_msg_cb)(void *, void (*)(void *, const message *, void *));
    void *(*new)(int, void *, char *, size_t);
    void *(*topic_new)(void *, const char *, void *);
    int (*produce)(void *, int32_t, int, void *, size_t, const void *, size_t, void *);
    int (*last_error)(void);
    int (*poll)(void *, int);
    void (*topic_destroy)(void *);
    void (*destroy)(void *);
} kafka;

static uint64_t acked, failed;

static void delivered(void *rk, const message *m, void *opaque)
{
    (void)rk, (void)opaque;
    if (m->err)
        failed++;
    else
        acked++;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#define FIND(name) (*(void **)&kafka.name = dlsym(library, "rd_kafka_" #name))

typedef struct producer {
    void *rk, *topic;
} producer;

/* settings: name, value, ..., NULL. NULL when anything is wrong. */
void *reference_open(const char *file, const char **settings, const char *topic)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_NOLOAD);
    char error[256];
    producer *p = calloc(1, sizeof *p);
    if (!library || !p || !FIND(conf_new) || !FIND(conf_set) || !FIND(conf_set_dr_msg_cb) ||
        !FIND(new) || !FIND(topic_new) || !FIND(produce) || !FIND(last_error) || !FIND(poll) ||
        !FIND(topic_destroy) || !FIND(destroy))
        return NULL;
    void *conf = kafka.conf_new();
    for (; settings[0]; settings += 2)
        if (kafka.conf_set(conf, settings[0], settings[1], error, sizeof error))
            return NULL;
    kafka.conf_set_dr_msg_cb(conf, delivered);
    p->rk = kafka.new(0, conf, error, sizeof error);
    p->topic = p->rk ? kafka.topic_new(p->rk, topic, NULL) : NULL;
    return p->topic ? p : NULL;
}

/* ns from the first call to the last report; -1 when a record failed or none comes any more. */
int64_t reference_produce(void *opened, uint64_t count, char *records, uint64_t nrecords,
                          uint64_t stride, uint64_t nbytes)
{
    producer *p = opened;
    uint64_t quiet = 0, before;
    acked = failed = 0;
    int64_t began = now_ns();
    for (uint64_t i = 0; i < count; i++) {
        char *value = records + i % nrecords * stride;
        while (kafka.produce(p->topic, 0, 0, value, nbytes, NULL, 0, NULL)) {
            if (kafka.last_error() != QUEUE_FULL)
                return -1;
            kafka.poll(p->rk, WAIT_MS);
        }
        kafka.poll(p->rk, 0);
    }
    while (acked + failed < count && quiet < 6000) {
        before = acked;
        kafka.poll(p->rk, WAIT_MS);
        quiet = acked == before ? quiet + 1 : 0;
    }
    return acked == count ? now_ns() - began : -1;
}

void reference_close(void *opened)
{
    producer *p = opened;
    kafka.topic_destroy(p->topic);
    kafka.destroy(p->rk);
    free(p);
}
